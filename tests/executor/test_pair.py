"""Ends and failures of a session: limits, stops, dead and hanging workers, no traces left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from executor.errors import ExecutorError
from executor.models.settings import parse_transport
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import EndFinder, Request, trim_stop
from sim.decoding.policies.catalog import parse_policy
from tests.settings import pair_settings
from traces.processes import num_cores
from traces.schema import FinishReason, Sampling

TRANSPORTS = pytest.mark.parametrize("transport", ["mailbox", "distributed"])
POLICIES = ["autoregressive", "fixed_length:draft_length=5", "pearl:draft_length=6", "saguaro:draft_length=4,fan_out=2"]


def _request(session: Session, **changes: object) -> Request:
    prompt = load_prompts("held_out", 1)[0]
    settings: dict[str, object] = {
        "prompt_id": prompt.prompt_id,
        "tokens": session.encode(prompt.text),
        "max_new_tokens": 24,
        "sampling": Sampling(1.0),
        "ignore_eos": True,
    }
    return Request(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.skipif(num_cores() < 2, reason="binding takes two cores")
@pytest.mark.usefixtures("bound_sessions")
def test_a_second_session_is_bound_to_the_same_cores_and_the_last_one_frees_them(session: Session) -> None:
    before = os.sched_getaffinity(0)
    with Session(pair_settings(capacity=256)) as first, warnings.catch_warnings():
        assert os.sched_getaffinity(0) == {first.cores[0]}
        warnings.simplefilter("error")  # that this process is bound says nothing about the machine's cores
        with Session(pair_settings(capacity=256)) as second:
            assert second.cores == first.cores
            target = os.sched_getaffinity(second.target.pid)
        assert target == {first.cores[1]}
        assert os.sched_getaffinity(0) == {first.cores[0]}
        request, policy = _request(session, max_new_tokens=8), parse_policy("pearl:draft_length=6")
        assert first.run(request, policy).tokens == session.run(request, policy).tokens
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("label", POLICIES)
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_the_token_limit_is_exact(session: Session, label: str, limit: int) -> None:
    done = session.run(_request(session, max_new_tokens=limit), parse_policy(label))
    assert len(done.tokens) == limit
    assert done.finish_reason is FinishReason.MAX_TOKENS


@pytest.mark.parametrize("label", POLICIES)
def test_generation_ends_with_the_first_end_token(session: Session, label: str) -> None:
    request = _request(session, max_new_tokens=40)
    free = session.run(request, parse_policy("autoregressive")).tokens
    session_eos, session.eos_ids = session.eos_ids, frozenset({free[9]})  # some token of the middle plays the end
    try:
        done = session.run(_request(session, max_new_tokens=40, ignore_eos=False), parse_policy(label))
    finally:
        session.eos_ids = session_eos
    assert done.tokens == free[: free.index(free[9]) + 1]
    assert done.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("label", POLICIES)
def test_generation_ends_with_the_token_that_completes_a_stop_string(session: Session, label: str) -> None:
    request = _request(session, max_new_tokens=40)
    free = session.run(request, parse_policy("autoregressive")).tokens
    text = session.decode_text(free)
    stop = text[len(text) // 2 : len(text) // 2 + 4]  # crosses token borders, most likely
    done = session.run(_request(session, max_new_tokens=40, stop_strings=(stop,)), parse_policy(label))
    assert stop in session.decode_text(done.tokens)
    assert stop not in session.decode_text(done.tokens[:-1])
    assert done.tokens == free[: len(done.tokens)]
    assert done.finish_reason is FinishReason.STOP_STRING
    assert trim_stop(session.decode_text(done.tokens), [stop]) == text[: text.index(stop)]


def test_a_prompt_of_one_token_works(session: Session) -> None:
    request = _request(session, tokens=(0,))
    plain = session.run(request, parse_policy("autoregressive"))
    assert session.run(request, parse_policy("pearl:draft_length=3")).tokens == plain.tokens


def test_a_request_beyond_the_capacity_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="capacity"):
        session.run(_request(session, max_new_tokens=5000), parse_policy("autoregressive"))


def test_global_random_state_is_untouched(session: Session) -> None:
    before = torch.get_rng_state()
    session.run(_request(session), parse_policy("fixed_length:draft_length=3"))
    assert torch.equal(before, torch.get_rng_state())


def test_ends_are_found_in_order() -> None:
    request = Request(prompt_id="p", tokens=(1,), max_new_tokens=5, sampling=Sampling())
    ends = EndFinder(request, frozenset({9}), lambda tokens: "")
    assert ends.find(2, [3]) == (1, None)
    assert ends.find(2, [3, 9, 4]) == (2, FinishReason.EOS)
    assert ends.find(2, [3, 4, 5, 6]) == (3, FinishReason.MAX_TOKENS)
    assert ends.find(2, [3, 4, 9]) == (3, FinishReason.EOS)


@pytest.mark.long
@TRANSPORTS
@pytest.mark.usefixtures("real_sessions")
def test_a_killed_worker_is_one_clear_error_and_leaves_nothing_behind(transport: str) -> None:
    with Session(pair_settings(capacity=256, transport=transport)) as broken:
        folder = broken.target._meeting_place
        assert folder.exists()
        pid = broken.target.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ExecutorError, match="the target process failed"):
            broken.run(_request(broken), parse_policy("pearl:draft_length=3"))
        with pytest.raises(ExecutorError, match="start a new session"):
            broken.run(_request(broken), parse_policy("autoregressive"))
    assert not folder.exists()
    assert not _exists(pid)


@TRANSPORTS
def test_a_worker_killed_at_work_is_noticed_at_once(transport: str) -> None:
    with Session(pair_settings(capacity=256, transport=transport)) as broken:
        pid = broken.target.pid
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        killer.start()
        started = time.perf_counter()
        with pytest.raises(ExecutorError, match="the target process failed during prefill"):
            broken.run(_request(broken), parse_policy("autoregressive"))
        assert 0.2 < time.perf_counter() - started < 30, "timeout_s is 60"
        killer.join()
    assert not _exists(pid)


@TRANSPORTS
def test_a_hanging_worker_is_stopped_in_time(transport: str) -> None:
    with Session(pair_settings(capacity=256, timeout_s=1.0, transport=transport)) as stuck:
        folder, pid = stuck.target._meeting_place, stuck.target.pid
        os.kill(pid, signal.SIGSTOP)
        started = time.perf_counter()
        with pytest.raises(ExecutorError, match="no answer in time"):
            stuck.run(_request(stuck), parse_policy("autoregressive"))
        assert time.perf_counter() - started < 30
    assert not folder.exists()
    assert not _exists(pid)


@pytest.mark.long
@TRANSPORTS
def test_a_worker_ends_when_its_parent_is_gone(transport: str) -> None:
    import subprocess
    import sys

    script = (
        "import os\n"
        "from executor.pair import Session\n"
        "from executor.models.settings import EngineSettings, PairSettings, Transport\n"
        "engine = EngineSettings(capacity=256)\n"
        f"session = Session(PairSettings(engine=engine, transport=Transport({transport!r})))\n"
        "print(session.target.pid, session.target._meeting_place, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    pid, folder = told.stdout.split()
    ended = threading.Event()
    for _ in range(1200):
        if not _is_running(int(pid)):
            ended.set()
            break
        time.sleep(0.05)
    assert ended.is_set(), f"worker {pid} outlived its parent"
    assert not Path(folder).exists()


def test_missing_weights_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path / "nowhere")):
        Session(pair_settings(target=str(tmp_path / "nowhere"), draft=str(tmp_path / "nowhere")))


@TRANSPORTS
def test_a_target_that_cannot_be_loaded_is_one_clear_error(transport: str) -> None:
    with pytest.raises(ExecutorError, match=r"failed during loading .* knows .* positions"):
        Session(pair_settings(capacity=1 << 20, transport=transport))


def test_an_unknown_transport_and_devices_that_do_not_exist_say_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown transport 'pigeon': choose mailbox or distributed"):
        parse_transport("pigeon")
    with pytest.raises(ValueError, match="unknown device 'gpu7'"):
        Session(pair_settings(target_device="gpu7"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no CUDA device"):
        Session(pair_settings(target_device="cuda:1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"cuda:2 was asked for, but there are 2 CUDA devices: the last is cuda:1"):
        Session(pair_settings(target_device="cuda:2"))


def _exists(pid: int) -> bool:
    """Whether there is such a process, be it one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

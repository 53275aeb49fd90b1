"""Two processes over torch.distributed, gloo on a CPU: the same protocol, the same tokens and rounds as by mailbox."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.check.identity import compare_rounds
from executor.loop import run_request
from executor.models.loading import load_engine
from executor.models.settings import Transport
from executor.pair import Session, resolve_pair
from executor.recording.prompts import load_prompts
from executor.recording.recorder import record_run
from executor.recording.settings import RecordSettings
from executor.remote.channel import Channel, Message
from executor.remote.client import TargetClient
from executor.remote.distributed import NUM_WORDS, _poll, num_words, pack_words, unpack_words
from executor.remote.transport import open_channel, uses_nccl
from executor.request import Request
from executor.resident.draft import GraphDraft
from executor.resident.engine import ResidentEngine
from executor.resident.shared import SharedDevice
from executor.resident.target import GraphTarget
from sim.decoding.policies.catalog import parse_policy
from tests.executor.same_rounds import assert_replayed
from tests.settings import pair_settings, record_settings
from traces.schema import Sampling

CPU = torch.device("cpu")
NUM_GPUS = torch.cuda.device_count()
POLICIES = [
    "fixed_length:draft_length=3",
    "pearl:draft_length=4",
    "specbranch:uses_hrad=false,draft_length=5",
    "specbranch:draft_length=4",  # with H-RAD's classes, which cross as floats
    "saguaro:draft_length=3,fan_out=2",
    "outcome_hedging:max_branches=6",
]
GPU_PAIR = pytest.param(
    ("resident", "cuda:0", "cuda:1"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"two CUDA devices are needed, {NUM_GPUS} found")],
)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.fixture(scope="module", params=[("static", "cpu", "cpu"), ("resident", "cpu", "cpu"), GPU_PAIR])
def settings(request: pytest.FixtureRequest) -> RecordSettings:
    engine, device, target_device = request.param
    return record_settings(
        engine=engine,
        device=device,
        target_device=target_device,
        transport="distributed",
        capacity=512,
        hrad="embedded",
    )


@pytest.fixture(scope="module")
def apart(settings: RecordSettings) -> Iterator[Session]:
    with Session(settings.pair) as session:
        yield session


def _request(session: Session, number: int, temperature: float, **changes: object) -> Request:
    prompt = load_prompts("held_out", 1, skip=number)[0]
    given: dict[str, object] = {"tokens": session.encode(prompt.text), "max_new_tokens": 24, "seed": 3, **changes}
    sampling = Sampling(temperature)
    return Request(prompt_id=prompt.prompt_id, sampling=sampling, noise_key=number, ignore_eos=True, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_method_emits_the_tokens_of_plain_decoding_in_the_replayed_rounds(
    session: Session, apart: Session, temperature: float
) -> None:
    request = _request(apart, 2, temperature)
    plain = apart.run(request, parse_policy("autoregressive"))
    assert plain.tokens == session.run(request, parse_policy("autoregressive")).tokens
    trace = apart.annotate(plain, request_id=0, tail_depth=16).trace
    for label in POLICIES:
        policy = parse_policy(label)
        done = apart.run(request, policy)
        rounds = [round_ for round_, _ in done.rounds]
        assert done.tokens == plain.tokens, label
        assert_replayed(rounds, policy, trace)
        if not policy.needs.classes:  # for which the mailbox's session has no predictor
            by_mailbox = session.run(request, policy)
            assert by_mailbox.tokens == done.tokens, label
            assert [round_ for round_, _ in by_mailbox.rounds] == rounds, label


def test_a_prompt_of_several_buckets_is_decoded_alike(session: Session, apart: Session) -> None:
    prompt = _request(apart, 2, 1.0).tokens
    request = _request(apart, 2, 1.0, tokens=(prompt * 40)[: NUM_WORDS + 100])
    policy = parse_policy("pearl:draft_length=4")
    assert apart.run(request, policy).tokens == session.run(request, policy).tokens


def test_the_target_works_in_a_process_of_its_own_at_times_of_this_one_s_clock(apart: Session) -> None:
    assert isinstance(apart.target, TargetClient)
    before = time.perf_counter()
    done = apart.run(_request(apart, 1, 0.0), parse_policy("pearl:draft_length=4"))
    after = time.perf_counter()
    ops = [op for op in done.ops if op.actor == "target"]
    assert {(op.kind, op.is_beside) for op in ops} == {("prefill", False), ("verify", False), ("verify", True)}
    assert all(before <= op.start_s <= op.end_s <= after for op in ops)


def test_a_recorded_run_names_its_devices_and_replays(settings: RecordSettings, apart: Session, tmp_path: Path) -> None:
    from dataclasses import replace

    labels = ("autoregressive", "pearl:draft_length=3")
    short = replace(
        settings,
        prompts=replace(settings.prompts, num=2),
        decoding=replace(settings.decoding, max_new_tokens=16, policies=labels),
    )
    run = record_run(short, tmp_path / "run", session=apart)
    assert run.summary["tokens_identical"]
    assert compare_rounds(run).is_identical
    assert run.config["pair"]["transport"] == "distributed"
    named = {(op.actor, op.device) for op in run.ops.itertuples() if op.actor != "host"}
    devices = settings.pair.engine.device, settings.pair.target_engine.device
    assert named == {("draft", f"{devices[0]}:draft"), ("target", f"{devices[1]}:target")}


def test_the_resident_target_s_own_process_also_answers_by_mailbox(session: Session) -> None:
    # What two GPUs run by default: with one device the session keeps both models in one process.
    pair = resolve_pair(pair_settings(engine="resident", capacity=384))
    engine = load_engine(pair.draft, pair.engine)
    assert isinstance(engine, ResidentEngine)
    request = _request(session, 1, 1.0)
    policy = parse_policy("saguaro:draft_length=3,fan_out=2")
    with torch.inference_mode(), TargetClient(pair) as target:
        done = run_request(
            request,
            policy,
            request_id=0,
            draft=GraphDraft(engine, SharedDevice.of(engine, is_shared=False)),
            target=target,
            noise=None,
            eos_ids=frozenset(),
            decode_text=session.decode_text,
        )
    expected = session.run(request, policy)
    assert done.tokens == expected.tokens
    assert [round_ for round_, _ in done.rounds] == [round_ for round_, _ in expected.rounds]


def test_one_device_and_the_mailbox_keep_the_resident_pair_in_one_process() -> None:
    with Session(pair_settings(engine="resident", capacity=256, target_device="cpu")) as together:
        assert isinstance(together.target, GraphTarget)


@given(st.integers(0, 99), st.lists(INT64, max_size=600), st.lists(st.floats(), max_size=9))
def test_words_carry_any_message_bit_by_bit(opcode: int, integers: list[int], floats: list[float]) -> None:
    words = pack_words(Message(opcode, integers, floats))
    assert len(words) == num_words(words[:NUM_WORDS]) >= NUM_WORDS
    read = unpack_words(words)
    assert (read.opcode, read.integers) == (opcode, integers)
    assert np.array_equal(read.floats, floats, equal_nan=True)


def test_messages_cross_in_order_and_a_lost_or_late_side_is_told(tmp_path: Path) -> None:
    ends: dict[int, Channel] = {}

    def come(rank: int) -> None:
        ends[rank] = open_channel(Transport.DISTRIBUTED, tmp_path, rank, (CPU, CPU))

    other = threading.Thread(target=come, args=(1,))
    other.start()
    come(0)
    other.join()
    sent = [Message(7, [1, -2], [0.5]), Message(8, list(range(1000)), [math.inf]), Message(9, [], [])]
    for message in sent:
        ends[0].post(message)
    assert [ends[1].wait(lambda: None, 30.0) for _ in sent] == sent
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        ends[1].wait(lambda: None, 0.3)
    assert 0.2 < time.perf_counter() - started < 10
    ends[1].close()
    with pytest.raises(ConnectionError):
        ends[0].wait(lambda: None, 30.0)
    ends[0].close()


class _Unfinished:
    """A receive that nothing comes to, as of NCCL when the other process is gone."""

    def is_completed(self) -> bool:
        return False


def test_waiting_for_nccl_asks_whether_the_other_side_lives_and_ends_in_time() -> None:
    def gone() -> None:
        raise ProcessLookupError

    with pytest.raises(ProcessLookupError):
        _poll(_Unfinished(), gone, math.inf)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        _poll(_Unfinished(), lambda: None, time.perf_counter() + 0.1)  # type: ignore[arg-type]


def test_nccl_is_for_two_different_gpus() -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert uses_nccl((first, second))
    assert not any(uses_nccl(pair) for pair in ((first, first), (CPU, first), (first, CPU), (CPU, CPU)))

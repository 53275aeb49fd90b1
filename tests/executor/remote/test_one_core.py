"""On one allowed core draft and target take turns: nobody spins on it, and a warning says what that means for times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor.pair import Session
from executor.remote import mailbox
from executor.remote.channel import Message
from executor.remote.mailbox import Mailbox
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from traces.schema import Sampling

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
SCRIPT = """
import os, warnings
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from executor.models.settings import EngineSettings, PairSettings
from executor.pair import Session
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from traces.schema import Sampling
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    session = Session(PairSettings(engine=EngineSettings(capacity=256)))
print(len([each for each in told if "cannot overlap" in str(each.message)]))
print(session.cores, session.target._channel._inbox._may_spin, session.target._channel._outbox._may_spin)
with session:
    request = Request(prompt_id="p", tokens=tuple(session.encode("def one")), max_new_tokens=24, sampling=Sampling(1.0))
    print(session.run(request, parse_policy("pearl:draft_length=3")).tokens)
"""


@pytest.mark.long
@needs_affinity
def test_one_core_is_shared_without_spinning_and_with_a_word(session: Session) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    warned, state, tokens = done.stdout.splitlines()
    assert warned == "1"
    assert state == "[] False False"
    request = Request(prompt_id="p", tokens=tuple(session.encode("def one")), max_new_tokens=24, sampling=Sampling(1.0))
    assert tokens == str(session.run(request, parse_policy("autoregressive")).tokens)


@pytest.mark.parametrize("may_spin", [True, False])
@pytest.mark.usefixtures("bound_sessions")  # of light ones nobody may
def test_a_waiter_that_may_not_spin_gives_the_core_away_at_every_look(
    may_spin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process answers while this one sleeps: on one core it could not otherwise."""
    sender, receiver = Mailbox(tmp_path / "box", may_spin), Mailbox(tmp_path / "box", may_spin)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            sender.post(Message(7, [1, 2]))

    looks: list[float] = []

    def now() -> float:
        looks.append(0.0)
        return 1e-4 * len(looks)  # so that every turn of the loop takes a moment

    monkeypatch.setattr(mailbox.time, "sleep", nap)
    monkeypatch.setattr(mailbox.time, "perf_counter", now)
    assert receiver.wait(lambda: None).integers == [1, 2]
    assert len(naps) == 3
    num_looks = len(looks) - 1
    assert (num_looks == 3) == (not may_spin)  # one nap a look, from the first on; a spinner naps after 20 ms only
    sender.close()
    receiver.close()

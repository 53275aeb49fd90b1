"""A policy is one class: a toy defined here runs on real models, and replay gives the very rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import Request
from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation
from sim.decoding.policies.serial.autoregressive import Autoregressive
from tests.executor.same_rounds import assert_replayed
from traces.schema import Sampling, Signal


@dataclass(frozen=True)
class EverySecondRound(Defaults):
    """Drafts in every second round, and hedges two next tokens at its end."""

    draft_length: int = 2

    @property
    def needs(self) -> Needs:
        return Needs(num_alternatives=2)

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self.draft_length - len(pending) if seen.num_rounds % 2 else 0

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges((0,) * len(pending) + (2,), 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_toy_policy_runs_on_real_models_without_being_registered(session: Session, temperature: float) -> None:
    prompt = load_prompts("held_out", 1, skip=1)[0]
    request = Request(
        prompt_id=prompt.prompt_id,
        tokens=session.encode(prompt.text),
        max_new_tokens=24,
        sampling=Sampling(temperature),
        seed=1,
        ignore_eos=True,
    )
    plain = session.run(request, Autoregressive())
    trace = session.annotate(plain, request_id=0, tail_depth=4).trace
    decoded = session.run(request, EverySecondRound())
    assert decoded.tokens == plain.tokens
    rounds = [round_ for round_, _ in decoded.rounds]
    assert any(round_.is_hit for round_ in rounds)
    assert {round_.num_serial for round_ in rounds} >= {0, 1} or {round_.num_serial for round_ in rounds} >= {0, 2}
    assert_replayed(rounds, EverySecondRound(), trace)

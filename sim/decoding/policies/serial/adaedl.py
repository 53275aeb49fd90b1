"""AdaEDL: stop drafting when the draft's entropy bounds the chance of acceptance from below too loosely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.decoding.policies.base import Defaults, Needs, Observation, Verdict, check_at_least
from traces.schema import Signal


@dataclass(frozen=True)
class AdaEdl(Defaults):
    """Stop when 1 - sqrt(entropy_factor H) < threshold (Agrawal et al. 2024, arXiv:2410.18351).

    Pinsker's inequality bounds the acceptance 1 - TV(p, q) from below by 1 - sqrt(KL / 2); AdaEDL puts a multiple of the
    draft's entropy H (nats) in the place of the divergence. The threshold follows the acceptance seen so far: with r the
    share accepted in a round, A <- rate_memory A + (1 - rate_memory) r; the threshold moves up by `step` when A is below
    target_rate and down otherwise, smoothed by threshold_memory, and stays when the window was full. step = 0 fixes it.
    """

    threshold: float = 0.4
    entropy_factor: float = 0.2
    max_length: int = 8
    target_rate: float = 0.9
    step: float = 0.01
    rate_memory: float = 0.5
    threshold_memory: float = 0.9

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 1, instead="for decoding without speculation use autoregressive.")
        check_at_least("entropy_factor", self.entropy_factor, 0, instead="0 never stops early.")

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=self.max_length, learns=True)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        if len(pending) >= self.max_length:
            return 0
        if not pending:
            return 1
        threshold = seen.memory[1] if seen.memory is not None else self.threshold
        bound = 1 - math.sqrt(self.entropy_factor * max(0.0, pending[-1].entropy))
        return 1 if bound >= threshold else 0

    def learn(self, memory: Any, verdict: Verdict) -> tuple[float, float]:
        rate, threshold = memory if memory is not None else (self.target_rate, self.threshold)
        if verdict.num_submitted == 0:
            return rate, threshold
        rate = self.rate_memory * rate + (1 - self.rate_memory) * verdict.num_accepted / verdict.num_submitted
        if verdict.num_submitted < self.max_length:
            moved = threshold + self.step if rate <= self.target_rate else threshold - self.step
            threshold = self.threshold_memory * threshold + (1 - self.threshold_memory) * moved
        return rate, threshold

"""SpecDec++: stop drafting when some drafted token is probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.acceptance_guess import AcceptanceGuess
from sim.decoding.policies.base import Needs, Observation, check_at_least
from traces.schema import Signal


@dataclass(frozen=True)
class ProductRule(AcceptanceGuess):
    """Stop when 1 - prod(beta_i) > threshold (Huang et al. 2024, arXiv:2405.19715, the optimal rule of its Theorem).

    beta_i is the predicted acceptance of drafted token i. The paper trains a head on the draft for it; here it is
    calibrated from a signal (`AcceptanceGuess`), which needs no training of the draft.
    """

    threshold: float = 0.7
    max_length: int = 8

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 1, instead="for decoding without speculation use autoregressive.")

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=self.max_length)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        if len(pending) >= self.max_length:
            return 0
        product = 1.0
        for signal in pending:
            product *= self.accept_probability(signal)
        return 1 if 1 - product <= self.threshold else 0

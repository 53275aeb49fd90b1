"""SSD / Saguaro: hedge every number of accepted tokens with a fan-out of next tokens."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, check_at_least
from traces.schema import Signal


class FanOut(enum.StrEnum):
    """How the branch budget is spread over the numbers of accepted tokens."""

    UNIFORM = "uniform"
    GEOMETRIC = "geometric"


@dataclass(frozen=True)
class Saguaro(Defaults):
    """Speculative speculative decoding (2026, arXiv:2603.03251): a cache of outcomes, drafted during the verification.

    For each n of 0..L accepted tokens the F_n best next tokens (the drafted one excluded for n < L) are drafted on by
    draft_length tokens. UNIFORM: F_n = fan_out. GEOMETRIC, for a budget B = fan_out (L + 1) (its Theorem on fan-outs):
    F_n proportional to a^(n / (1 + r)) for n < L and a^(L / (1 + r)) (1 - a)^(-1 / (1 + r)) for n = L, a the acceptance
    rate, r the exponent of the power law of cache misses; rounded down, the rest to the largest remainders. A miss drafts
    just in time, serially.
    """

    draft_length: int = 5
    fan_out: int = 2
    spread: FanOut = FanOut.GEOMETRIC
    acceptance: float = 0.65
    miss_exponent: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(
            "draft_length", self.draft_length, 1, instead="for decoding without speculation use autoregressive."
        )
        check_at_least("fan_out", self.fan_out, 1, instead="for no hedges use fixed_length.")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance must lie between 0 and 1, but got {self.acceptance}; give the measured rate.")
        check_at_least("miss_exponent", self.miss_exponent, 0, instead="1 is the usual power law.")

    @property
    def needs(self) -> Needs:
        return Needs(num_alternatives=1 + max(max(self.fanout_of(n)) for n in range(self.draft_length + 1)))

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 0 if seen.was_hit else self.draft_length - len(pending)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges(self.fanout_of(len(pending)), self.draft_length)

    def fanout_of(self, num_pending: int) -> tuple[int, ...]:
        """Fan-outs F_0 .. F_L for L pending tokens.

        >>> Saguaro(fan_out=3, spread=FanOut.UNIFORM).fanout_of(2)
        (3, 3, 3)
        """
        budget = self.fan_out * (num_pending + 1)
        return fan_outs(num_pending, budget, self.spread, self.acceptance, self.miss_exponent)


def fan_outs(
    num_pending: int, budget: int, spread: FanOut, acceptance: float, miss_exponent: float = 1.0
) -> tuple[int, ...]:
    """Fan-outs F_0 .. F_L for L = num_pending under a budget (see `Saguaro`); UNIFORM leaves a remainder unspent.

    >>> fan_outs(3, 8, FanOut.GEOMETRIC, acceptance=0.6)
    (3, 2, 1, 2)
    """
    if spread is FanOut.UNIFORM:
        return (budget // (num_pending + 1),) * (num_pending + 1)
    power = 1 / (1 + miss_exponent)
    shares = [acceptance ** (n * power) for n in range(num_pending + 1)]
    shares[-1] *= (1 - acceptance) ** -power
    exact = [budget * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    # Equal remainders go to the smaller n; rounding keeps the last digits of the acceptance from deciding.
    by_remainder = sorted(range(len(exact)), key=lambda n: round(counts[n] - exact[n], 6))
    for n in by_remainder[: budget - sum(counts)]:
        counts[n] += 1
    return tuple(counts)

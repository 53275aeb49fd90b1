"""PEARL: draft the next window while the target verifies this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, check_at_least, further_setting
from traces.schema import Signal


@dataclass(frozen=True)
class Pearl(Defaults):
    """Hedge the all-accepted outcome with the draft's best token (Liu et al. 2024, arXiv:2408.11850).

    Every round the draft makes draft_length tokens during the verification: its guess of the token after the pending
    ones and draft_length - 1 more. With nothing pending (after a miss) this is PEARL's pre-verify, with a full window its
    post-verify. draft_length about the cost ratio c keeps both models busy. num_further: the draft goes on, by so many more
    tokens at most, until the verdict comes (ours).
    """

    draft_length: int = 6
    num_further: int = further_setting()

    def __post_init__(self) -> None:
        check_at_least(
            "draft_length", self.draft_length, 1, instead="for decoding without speculation use autoregressive."
        )
        check_at_least("num_further", self.num_further, 0, instead="0 ends the draft at draft_length.")

    @property
    def needs(self) -> Needs:
        return Needs(is_timed=self.num_further > 0)

    @property
    def overlaps(self) -> bool:
        return True

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges((0,) * len(pending) + (1,), self.draft_length - 1, self.num_further)

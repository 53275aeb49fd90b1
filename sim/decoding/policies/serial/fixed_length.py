"""Speculative sampling with a fixed draft length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Observation, check_at_least
from traces.schema import Signal


@dataclass(frozen=True)
class FixedLength(Defaults):
    """Draft the same number of tokens every round, then verify (Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1)."""

    draft_length: int = 4

    def __post_init__(self) -> None:
        check_at_least(
            "draft_length", self.draft_length, 1, instead="for decoding without speculation use autoregressive."
        )

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self.draft_length - len(pending)

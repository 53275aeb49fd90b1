"""Prompt lookup: submit what the text itself proposes, and nothing where it proposes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Needs, Observation, check_at_least
from traces.schema import Signal


@dataclass(frozen=True)
class PromptLookup(Defaults):
    """Draft by looking up where the last tokens occurred before (Saxena 2023, prompt lookup decoding; 10 tokens there).

    The draft has no weights (`executor.models.engines.prompt_lookup`, by `--draft prompt_lookup`): its law is a point on
    the token that it found, and uniform where it found none. A lookup that finds nothing ends the draft; it counts as one
    drafted token that is withdrawn, since it was paid for.
    """

    max_length: int = 10

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 1, instead="for decoding without speculation use autoregressive.")

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=self.max_length)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        if len(pending) >= self.max_length:
            return 0
        return 1 if not pending or _was_found(pending[-1]) else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return next((index for index, signal in enumerate(drafted) if not _was_found(signal)), len(drafted))


def _was_found(signal: Signal) -> bool:
    """A point law against a uniform one."""
    return signal.max_prob > 0.5

"""Adaptive draft length: stop drafting when the draft is no longer sure of itself."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Needs, Observation, check_at_least
from traces.schema import Signal


class ConfidenceSignal(enum.StrEnum):
    """Which signal a confidence rule reads; all are made so that larger means surer."""

    MAX_PROB = "max_prob"
    NEGATIVE_ENTROPY = "negative_entropy"
    MARGIN = "margin"


def confidence(signal: Signal, kind: ConfidenceSignal) -> float:
    """The value of one signal, larger is surer: probability, minus nats, or noisy log-probability margin."""
    if kind is ConfidenceSignal.MAX_PROB:
        return signal.max_prob
    if kind is ConfidenceSignal.MARGIN:
        return signal.margin
    return -signal.entropy


@dataclass(frozen=True)
class ConfidenceStop(Defaults):
    """Draft until a token's confidence falls below a threshold or max_length is reached; the last token is submitted too.

    The rule of assisted generation in Hugging Face transformers (`assistant_confidence_threshold`), there with the
    largest probability. The token that stopped the drafting is already paid for, so submitting it costs almost nothing.
    """

    threshold: float = 0.4
    max_length: int = 8
    signal: ConfidenceSignal = ConfidenceSignal.MAX_PROB

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 1, instead="for decoding without speculation use autoregressive.")

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=self.max_length - 1)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        if len(pending) >= self.max_length:
            return 0
        return 1 if not pending or confidence(pending[-1], self.signal) >= self.threshold else 0

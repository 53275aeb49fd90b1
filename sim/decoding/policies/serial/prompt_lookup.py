"""Prompt lookup: submit what the text itself proposes, and nothing where it proposes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Needs, Observation, Policy, check_at_least
from traces.schema import Signal

LOOKUP_DRAFT = "prompt_lookup"  # a draft's name, settings of the lookup behind a colon


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


def looks_up(draft: str) -> bool:
    """Whether a draft's name asks for a lookup and not for a model."""
    return draft.partition(":")[0] == LOOKUP_DRAFT


def check_drafter(policy: Policy, draft: str | None) -> None:
    """Refuse the policy that speaks of a lookup beside a model, whose confidences it would misread.

    draft: None where it is not known, as in a trace that no models made; then nothing is refused.
    """
    if isinstance(policy, PromptLookup) and draft is not None and not looks_up(draft):
        raise ValueError(
            f"the policy {LOOKUP_DRAFT} needs a draft that looks tokens up, but the draft is {draft}; "
            f"record with --draft {LOOKUP_DRAFT}."
        )


def _was_found(signal: Signal) -> bool:
    """A point law against a uniform one."""
    return signal.max_prob > 0.5

"""SpecBranch: several branches at one predicted point, draft lengths by confidence and by H-RAD's class."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, check_at_least, further_setting
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, confidence
from traces.schema import Signal

REJECT, CONFIDENCE, ACCEPT = 0, 1, 2


class OnMiss(enum.StrEnum):
    """What follows an outcome that no branch held."""

    SERIAL = "serial"  # draft a new window while the target waits (the paper's draft stage)
    OVERLAP = "overlap"  # the target forwards at once and pre-verifies the branches' first tokens


@dataclass(frozen=True)
class SpecBranch(Defaults):
    """Hybrid drafting with rollback-aware branches (Shen et al. 2025, arXiv:2506.01979).

    The window ends before its first token below epsilon (the branch point), else after draft_length tokens. While the
    target verifies it, k = max(1, floor(max_branches (1 - q))) branches start with the draft's k best tokens at the branch
    point, q being its largest probability there, and are drafted on as one batch. H-RAD's class decides, before drafting
    after a miss (prior drafting) and after a hit (posterior drafting), how much is submitted: 0 nothing, so that the branch
    point is the very next token; 1 up to the first token below epsilon; 2 everything.

    draft_length: longest window; the paper's gamma, about the cost ratio c or less. prior_length: longest window drafted
    serially after a miss (0: as draft_length). epsilon: threshold on `signal`. Ablations: max_branches = 1 (no branches),
    uses_hrad = False (confidence decides), is_fixed_count (k = max_branches always), epsilon = 0 with the largest
    probability (fixed length). num_further (ours): branches go on until the verdict comes, by so many tokens at most.
    """

    draft_length: int = 6
    max_branches: int = 4
    epsilon: float = 0.3
    uses_hrad: bool = True
    is_fixed_count: bool = False
    on_miss: OnMiss = OnMiss.SERIAL
    prior_length: int = 0
    signal: ConfidenceSignal = ConfidenceSignal.MAX_PROB
    num_further: int = further_setting()

    def __post_init__(self) -> None:
        check_at_least(
            "draft_length", self.draft_length, 1, instead="for decoding without speculation use autoregressive."
        )
        check_at_least("max_branches", self.max_branches, 1, instead="1 switches branches off.")
        check_at_least("prior_length", self.prior_length, 0, instead="0 takes draft_length.")
        check_at_least("num_further", self.num_further, 0, instead="0 ends the draft at draft_length.")

    @property
    def needs(self) -> Needs:
        return Needs(
            signals=True,
            num_alternatives=self.max_branches,
            tail_depth=max(self.draft_length + self.num_further, self.prior_length) + 1,
            classes=self.uses_hrad,
            class_window=self._class_window if self.uses_hrad else 0,
            is_timed=self.num_further > 0,
        )

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        # After a hit the posterior has spoken, even when it kept nothing; the first round has no hit behind it.
        if seen.was_hit or self.on_miss is OnMiss.OVERLAP:
            return 0
        kind = self._class_of(seen)
        room = (self.prior_length or self.draft_length) - len(pending)
        if kind == REJECT or room <= 0:
            return 0
        if kind == ACCEPT:
            return room
        return 1 if not pending or self._is_sure(pending[-1]) else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        kind = self._class_of(seen)
        if kind == REJECT:
            return 0
        if kind == ACCEPT:
            return len(drafted)
        return next((index for index, signal in enumerate(drafted) if not self._is_sure(signal)), len(drafted))

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        count = self.max_branches
        if not self.is_fixed_count:
            count = branch_count(self.max_branches, frontier)
        return Hedges((0,) * len(pending) + (count,), self.draft_length, self.num_further)

    @property
    def _class_window(self) -> int:
        return max(self.draft_length, self.prior_length if self.on_miss is OnMiss.SERIAL else 0)

    def _class_of(self, seen: Observation) -> int:
        return likeliest_class(seen) if self.uses_hrad else CONFIDENCE

    def _is_sure(self, signal: Signal) -> bool:
        return confidence(signal, self.signal) >= self.epsilon


def likeliest_class(seen: Observation) -> int:
    """H-RAD's most probable class; CONFIDENCE without a prediction."""
    return CONFIDENCE if seen.class_probs is None else seen.class_probs.index(max(seen.class_probs))


def branch_count(max_branches: int, frontier: Signal) -> int:
    """k = max(1, floor(max_branches (1 - q))), q the draft's largest probability at the branch point.

    >>> branch_count(8, Signal(max_prob=0.75, entropy=1.0, margin=1.0))
    2
    """
    return max(1, int(max_branches * (1 - frontier.max_prob)))

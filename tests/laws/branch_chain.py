"""SpecBranch in closed form when confidence and H-RAD's class decide the draft length: a Markov chain, solved.

Assumed of each draft token, independently of all others: the draft is sure of it (confidence at least epsilon) with
probability `sure`; it is accepted, all before it accepted, with `alpha_sure` or `alpha_unsure`. The class after each round is
drawn from `class_probs` (reject, confidence, accept) and tells nothing of what follows: a predictor without information;
(0, 1, 0) is SpecBranch without H-RAD. The branch count is fixed (is_fixed_count), and a rejected token at the branch point is
among ranks 2 to k with `rescue_rate`. Times are in draft forwards; every target forward takes cost_ratio.

Rounds differ by their window: how many tokens are pending, and whether the branch point is a token that the draft is unsure
of. What window comes next depends on the last round only by whether it was hit, so the stationary law is that of windows and
hits together. Method: Shen et al. 2025, arXiv:2506.01979; the chain is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import null_space

from sim.decoding.closed_forms import branch_hit_probability, expected_emitted_tokens


class Window(NamedTuple):
    """One kind of round. chance: of this window among those after a hit, or after a miss. num_serial: forwards before the
    target is asked. needs_look: whether the branch point's law costs a forward of its own."""

    chance: float
    num_pending: int
    alpha: float
    alpha_at_branch: float
    num_serial: int
    needs_look: bool


class BranchChainLaw(NamedTuple):
    """In the long run: tokens a target forward, share of rounds that are hit, speed-up over autoregressive decoding."""

    tokens_per_forward: float
    hit_rate: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class BranchChain:
    """See the head of this file. draft_length: longest window, also of one drafted serially after a miss."""

    draft_length: int
    sure: float
    alpha_sure: float
    alpha_unsure: float
    rescue_rate: float
    cost_ratio: float
    class_probs: tuple[float, float, float] = (0.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        chances = (self.sure, self.alpha_sure, self.alpha_unsure, self.rescue_rate, *self.class_probs)
        if not all(0 <= chance <= 1 for chance in chances) or abs(sum(self.class_probs) - 1) > 1e-9:
            raise ValueError(f"chances lie in [0, 1] and those of the classes add up to 1, but got {self}.")
        if self.draft_length < 1:
            raise ValueError(f"draft_length must be at least 1, but got {self.draft_length}.")

    @property
    def alpha(self) -> float:
        """Acceptance of a token that nothing is known of."""
        return self.sure * self.alpha_sure + (1 - self.sure) * self.alpha_unsure

    def windows(self, *, after_hit: bool) -> Iterator[Window]:
        """All windows after a hit, cut from what was drafted ahead, or after a miss, drafted serially."""
        reject, confidence, accept = self.class_probs
        longest, alpha = self.draft_length, self.alpha
        yield Window(reject, 0, alpha, alpha, 0, not after_hit)
        yield Window(accept, longest, alpha, alpha, 0 if after_hit else longest, True)
        for length in range(longest):
            chance = confidence * self.sure**length * (1 - self.sure)
            serial = 0 if after_hit else length + 1
            yield Window(chance, length, self.alpha_sure, self.alpha_unsure, serial, False)
        serial = 0 if after_hit else longest
        yield Window(confidence * self.sure**longest, longest, self.alpha_sure, alpha, serial, True)

    def law(self) -> BranchChainLaw:
        """The stationary law's means.

        >>> chain = BranchChain(
        ...     draft_length=5, sure=1.0, alpha_sure=0.8, alpha_unsure=0.0, rescue_rate=0.5, cost_ratio=8.0
        ... )
        >>> round(chain.law().speedup, 3)  # always sure: `sim.decoding.closed_forms.specbranch_serial_speedup`
        2.561
        """
        windows = [(after_hit, window) for after_hit in (False, True) for window in self.windows(after_hit=after_hit)]
        chance = np.array([window.chance for _, window in windows])
        is_after_hit = np.array([after_hit for after_hit, _ in windows])
        survive = np.array(
            [
                window.alpha**window.num_pending * branch_hit_probability(window.alpha_at_branch, self.rescue_rate)
                for _, window in windows
            ]
        )
        moves = np.where(is_after_hit, survive[:, None], 1 - survive[:, None]) * chance  # (from, to)
        stationary = null_space(moves.T - np.eye(len(windows)), rcond=1e-12)[:, 0]
        stationary = stationary / stationary.sum()
        emitted = np.array([expected_emitted_tokens(window.alpha, window.num_pending) for _, window in windows])
        time = np.array(
            [window.num_serial + max(self.cost_ratio, self.draft_length + window.needs_look) for _, window in windows]
        )
        tokens = float(stationary @ emitted)
        return BranchChainLaw(tokens, float(stationary @ survive), self.cost_ratio * tokens / float(stationary @ time))

"""The best draft length from numbers alone: acceptance by position, and what a step of target and draft takes.

One request: serial drafts take K draft forwards and one of the target for 1 + a_1 + ... + a_K tokens (Leviathan et al. 2023,
arXiv:2211.17192, with the marginal chance a_i of each position in place of alpha^i). Overlapped drafts (PEARL, Liu et al.
2024, arXiv:2408.11850) take the longer of K draft forwards and one of the target; the draft has a device of its own.

Assumptions: verifying K + 1 tokens takes as long as one, unless step costs say otherwise; beyond the measured positions, and
in an overlapped window that follows an accepted one, the last conditional chance holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.serving.rounds.base import ServerLoad
from sim.serving.rounds.length_rules import GoodputRule
from traces.fits.step_costs import AcceptanceByPosition

if TYPE_CHECKING:
    from sim.serving.costs import SummedModel

MAX_LENGTH = 32  # of a draft
MIN_GAIN = 0.01  # of a longer draft over a shorter one, so that ties make no bands


@dataclass(frozen=True)
class ConstantTimes:
    """A model of forwards that each take the same time, whatever is in them: one request, where the weights are read.

    target_s, draft_s: seconds of a forward; more than 0, and at least 0. Raises ValueError for other values.
    """

    target_forward_s: float
    draft_forward_s: float

    def __post_init__(self) -> None:
        if not 0 < self.target_forward_s < math.inf:
            raise ValueError(f"a target forward must take more than 0 ms, but got {1e3 * self.target_forward_s:g}.")
        if not 0 <= self.draft_forward_s < math.inf:
            raise ValueError(f"a draft forward must take at least 0 ms, but got {1e3 * self.draft_forward_s:g}.")

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return self.target_forward_s

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return self.draft_forward_s


@dataclass(frozen=True, kw_only=True)
class LengthAdvice:
    """What one draft length does for one request.

    tokens_per_step: of a serial step, the target's own included. seconds_per_token, speedup: serial, speedup over plain
    decoding. overlapped_speedup: the same for PEARL. is_guess: the length exceeds the measured positions.
    """

    draft_length: int
    tokens_per_step: float
    seconds_per_token: float
    speedup: float
    overlapped_speedup: float
    is_guess: bool


def advise_one_request(
    model: SummedModel, acceptance: AcceptanceByPosition, *, max_length: int, context: int = 1024
) -> list[LengthAdvice]:
    """One row a draft length from 0 to max_length, for a single request with so many tokens in its cache.

    Raises ValueError for a max_length outside 1 to 32, and a context below 0.
    """
    if not 1 <= max_length <= MAX_LENGTH:
        raise ValueError(f"the longest draft must have 1 to {MAX_LENGTH} tokens, but got {max_length}.")
    if context < 0:
        raise ValueError(f"a context has at least 0 tokens, but got {context}.")
    plain_s = model.target_s(1, context, 1)
    advice = []
    for length in range(max_length + 1):
        tokens = acceptance.mean_acceptance_length(length)
        draft_s = sum(model.draft_s(1, context + position, 1) for position in range(length))
        target_s = model.target_s(length + 1, context, 1)
        seconds = (draft_s + target_s) / tokens
        overlapped = 1.0
        if length:  # a window submits K - 1 tokens, and its guess of the next one is checked by the target's own
            step_s = max(draft_s, model.target_s(length, context, 1))
            overlapped = overlapped_tokens_per_step(acceptance.conditional, length) * plain_s / step_s
        advice.append(
            LengthAdvice(
                draft_length=length,
                tokens_per_step=tokens,
                seconds_per_token=seconds,
                speedup=plain_s / seconds,
                overlapped_speedup=overlapped,
                is_guess=length > len(acceptance.conditional),
            )
        )
    return advice


def overlapped_tokens_per_step(conditional: Sequence[float], draft_length: int) -> float:
    """PEARL's tokens a target forward where the chance of acceptance depends on the position.

    A pre-verify emits one token and leads with chance c_1 to a window of positions 2 to gamma + 1; a window emits 1 + its
    accepted tokens but the last, and leads to the next one where all gamma are accepted. A sum over the windows since the last
    rejection, whose tail, where the last chance holds, is geometric. With one chance at all positions this is
    `sim.decoding.closed_forms.pearl_tokens_per_step`. Our derivation.

    >>> round(overlapped_tokens_per_step([0.8], 5), 3)
    2.283
    """
    tokens, steps, reached = 1.0, 1.0, conditional[0]
    first = 1  # place of the window's first chance
    while reached > 0:
        chances = [conditional[min(first + index, len(conditional) - 1)] for index in range(draft_length)]
        emitted = 1.0 + sum(math.prod(chances[:count]) for count in range(1, draft_length))
        survives = math.prod(chances)
        if first >= len(conditional) - 1:
            if survives == 1:
                return emitted
            return (tokens + reached * emitted / (1 - survives)) / (steps + reached / (1 - survives))
        tokens, steps, reached = tokens + reached * emitted, steps + reached, reached * survives
        first += draft_length
    return tokens / steps


def best_length(advice: Sequence[LengthAdvice], *, overlapped: bool = False) -> LengthAdvice:
    """The shortest measured length that is within a percent of the fastest measured one."""
    known = [row for row in advice if not row.is_guess]
    speeds = [row.overlapped_speedup if overlapped else row.speedup for row in known]
    return next(row for row, speed in zip(known, speeds, strict=True) if speed * (1 + MIN_GAIN) >= max(speeds))


@dataclass(frozen=True)
class BatchAdvice:
    """The best serial length for a batch of so many requests, and its tokens a second over those of plain decoding."""

    batch: int
    draft_length: int
    speedup: float


def advise_batches(
    model: SummedModel, acceptance: AcceptanceByPosition, batches: Sequence[int], *, max_length: int, context: int
) -> list[BatchAdvice]:
    """The best measured length of each batch at this mean context."""
    rule = GoodputRule(model, acceptance.marginal(min(max_length, len(acceptance.conditional))))
    rows = []
    for batch in batches:
        load = ServerLoad.alike(batch, context)
        length = rule.best_length(load, min_gain=MIN_GAIN)
        rows.append(BatchAdvice(batch, length, rule.gain(load, length)))
    return rows

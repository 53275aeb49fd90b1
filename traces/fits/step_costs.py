"""How long a server's step takes: one law of a forward over a batch, for the target and for each of its drafts.

    seconds = (weights(n)^p + (token n)^p)^(1/p) + context C + request R + uncaptured [n > max_graph_tokens]
    weights(n) = floor + ramp (1 - exp(-n / ramp_tokens))

for n new tokens of all rows together (pieces of prompts included), C tokens of context summed over the rows, and R rows.
Reading the weights is the floor. It rises with the first tokens: kernels leave their forms for a few rows, and of a mixture of
experts more are read the more tokens choose (of E experts, k a token, the share 1 - (1 - k / E)^n: ramp_tokens is E / k). The
compute roof is a slope in n; p says how sharply the two meet (large: a corner; 1: they add up, as if nothing overlapped).
Attention reads each row's context at its own cost, so it adds; a row costs sampling and bookkeeping. A step with more tokens
than the largest captured CUDA graph is launched kernel by kernel, which costs a jump. What the host does once a step is a part
of the floor, unless `StepCosts.host_s` names it.

Rooflines: Williams et al. 2009. Additive in f(tokens) and contexts: measured on vLLM, where a fit without contexts is off by a
factor (the verify-cost grid of 10 points that the tests use). Assumption: rows of one step differ only through the sums, so
that a batch of equal contexts takes as long as one of unequal ones with the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from traces.files import write_text

Floats = NDArray[np.float64]

MAX_GRAPH_TOKENS = 512  # vLLM captures graphs up to min(2 max_num_seqs, 512) tokens unless it is set otherwise


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """Seconds of one forward of a batch; the head of this file has the formula.

    floor_s: seconds of a forward of one token. ramp_s, ramp_tokens: what is added to it, and tokens by which 63% of that is.
    token_s: of a new token where compute is the limit. sharpness: p, at least 1. context_s: of a token of context.
    request_s: of a row. uncaptured_s: more where num_tokens
    exceeds max_graph_tokens. Raises ValueError where one is negative or not finite.

    >>> cost = ForwardCost(floor_s=0.03, token_s=0.0001, sharpness=2.0, context_s=1e-7)
    >>> round(cost.seconds(400, 10_000, 100), 6)
    0.051
    """

    floor_s: float
    token_s: float = 0.0
    sharpness: float = 3.0
    context_s: float = 0.0
    request_s: float = 0.0
    uncaptured_s: float = 0.0
    ramp_s: float = 0.0
    ramp_tokens: float = 16.0
    max_graph_tokens: int = MAX_GRAPH_TOKENS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name} of a forward must be finite and at least 0, but got {value}.")
        if not self.ramp_tokens:
            raise ValueError("ramp_tokens must be above 0; where nothing rises, ramp_s is 0.")
        if self.sharpness < 1:
            raise ValueError(f"sharpness must be at least 1, where floor and slope add up, but got {self.sharpness}.")

    def seconds(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        """Of one forward; 0 where it has no token."""
        if not num_tokens:
            return 0.0
        rooted_s = self._rooted_s.get(num_tokens)
        if rooted_s is None:
            sharpness = self.sharpness
            weights_s = self.floor_s
            if self.ramp_s:
                weights_s -= self.ramp_s * math.expm1(-num_tokens / self.ramp_tokens)
            rooted_s = (weights_s**sharpness + (self.token_s * num_tokens) ** sharpness) ** (1 / sharpness)
            self._rooted_s[num_tokens] = rooted_s
        total_s = rooted_s + self.context_s * context_tokens + self.request_s * num_requests
        return total_s + self.uncaptured_s if num_tokens > self.max_graph_tokens else total_s

    @cached_property
    def _rooted_s(self) -> dict[int, float]:
        """The first term by tokens, where it has been asked for: a simulation asks for few sizes, very often."""
        return {}

    def seconds_array(self, num_tokens: ArrayLike, context_tokens: ArrayLike, num_requests: ArrayLike) -> Floats:
        """`seconds` of arrays that broadcast."""
        tokens = np.asarray(num_tokens, float)
        sharpness = self.sharpness
        weights_s = self.floor_s - self.ramp_s * np.expm1(-tokens / self.ramp_tokens)
        rooted = (weights_s**sharpness + (self.token_s * tokens) ** sharpness) ** (1 / sharpness)
        total_s: Floats = (
            rooted + self.context_s * np.asarray(context_tokens) + self.request_s * np.asarray(num_requests)
        )
        total_s = total_s + self.uncaptured_s * (tokens > self.max_graph_tokens)
        return np.where(tokens > 0, total_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Forwards of a server's target and draft, as `sim.serving.costs.SummedModel` asks for them.

    draft: of one forward of the draft over the batch, pieces of prompts included; None: the server has no draft.
    host_s: of the host, once a step, counted with the target.
    """

    target: ForwardCost
    draft: ForwardCost | None = None
    host_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.host_s < math.inf:
            raise ValueError(f"host_s must be finite and at least 0, but got {self.host_s}.")

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        """Seconds of the target's forward over the batch, and of the host's part of the step."""
        return self.target.seconds(num_tokens, context_tokens, num_requests) + self.host_s

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        """Seconds of one of the draft's forwards. Raises ValueError where there is no draft."""
        if self.draft is None:
            raise ValueError("these step costs have no draft; fit them to a server that speculates.")
        return self.draft.seconds(num_tokens, context_tokens, num_requests)

    def write(self, path: Path) -> None:
        """As JSON."""
        write_text(path, _STEP_COSTS.dump_json(self, indent=2).decode() + "\n")


_STEP_COSTS = TypeAdapter(StepCosts)


def read_step_costs(path: Path) -> StepCosts:
    """What `StepCosts.write` wrote. Raises ValueError (pydantic's) where the file holds something else."""
    return _STEP_COSTS.validate_json(path.read_bytes())


@dataclass(frozen=True)
class AcceptanceByPosition:
    """Chance that the draft token at each position is accepted, given that the ones before it were.

    conditional: (K,). Beyond the measured K the last one holds. This is a guess: conditional acceptance rises with the
    position for draft models and falls for EAGLE-3, so that lengths far beyond K come out too short or too long.

    >>> acceptance = AcceptanceByPosition.from_marginal([0.8, 0.6])
    >>> round(acceptance.mean_acceptance_length(2), 9), round(acceptance.mean_acceptance_length(3), 9)
    (2.4, 2.85)
    """

    conditional: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.conditional or not all(0 <= chance <= 1 for chance in self.conditional):
            raise ValueError(f"acceptance by position must be chances in [0, 1], but got {self.conditional}.")

    @classmethod
    def from_marginal(cls, marginal: Sequence[float]) -> AcceptanceByPosition:
        """From the share of all rounds that accepted the token at each position, as engines count them.

        Raises ValueError where they rise with the position, which survival cannot.
        """
        before = 1.0
        conditional = []
        for position, chance in enumerate(marginal):
            if not 0 <= chance <= before:
                raise ValueError(
                    f"marginal acceptance must lie in [0, 1] and never rise with the position, but position {position} has "
                    f"{chance:g} after {before:g}; are these conditional rates, or percent?"
                )
            conditional.append(chance / before if before else 0.0)
            before = chance
        return cls(tuple(conditional))

    def marginal(self, draft_length: int) -> tuple[float, ...]:
        """(draft_length,) share of rounds of this length that accept the token at each position."""
        survival, values = 1.0, []
        for position in range(draft_length):
            survival *= self.conditional[min(position, len(self.conditional) - 1)]
            values.append(survival)
        return tuple(values)

    def mean_acceptance_length(self, draft_length: int) -> float:
        """Tokens a round, the target's own included."""
        return 1.0 + sum(self.marginal(draft_length))

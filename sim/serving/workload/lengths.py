"""Laws of how long prompts and outputs are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from traces.workload import Counts, Lengths


class LengthLaw(Protocol):
    """How long requests are. Its repr says all of it, for people."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        """Prompt and output lengths of so many requests."""
        ...


@dataclass(frozen=True, kw_only=True)
class ConstantLengths:
    """Every request has these lengths."""

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        _check_at_least_1(prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        return Lengths(
            prompt_tokens=np.full(num_requests, self.prompt_tokens, dtype=np.int64),
            output_tokens=np.full(num_requests, self.output_tokens, dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class RecordedLengths:
    """The lengths of recorded requests in their order, from the first; never more than were recorded."""

    recorded: Lengths

    def __str__(self) -> str:
        return f"lengths of {self.recorded.source or 'recorded requests'}, in order"

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        """Raises ValueError where fewer were recorded."""
        if num_requests > self.recorded.num_requests:
            raise ValueError(
                f"num_requests is {num_requests}, but {self.recorded.num_requests} were recorded; "
                "use EmpiricalLengths to draw more."
            )
        return Lengths(
            prompt_tokens=self.recorded.prompt_tokens[:num_requests],
            output_tokens=self.recorded.output_tokens[:num_requests],
        )


@dataclass(frozen=True, eq=False)
class EmpiricalLengths:
    """The lengths of recorded requests, drawn with replacement; prompt and output of one request stay together."""

    recorded: Lengths

    def __str__(self) -> str:
        return f"lengths drawn from {self.recorded.source or 'recorded requests'}"

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        places = rng.integers(self.recorded.num_requests, size=num_requests)
        return Lengths(
            prompt_tokens=self.recorded.prompt_tokens[places], output_tokens=self.recorded.output_tokens[places]
        )


@dataclass(frozen=True, kw_only=True)
class LognormalLengths:
    """Prompts and outputs are lognormal, independent, rounded, and at least 1.

    mean_*: of the lognormal law. *_cv: its coefficient of variation; 0 gives every request the mean, rounded. max_*: longer
    ones are cut to it, which lowers the mean. Rounding keeps the means of all but very short lengths.
    """

    mean_prompt_tokens: float
    mean_output_tokens: float
    prompt_cv: float = 1.0
    output_cv: float = 1.0
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_at_least_1(mean_prompt_tokens=self.mean_prompt_tokens, mean_output_tokens=self.mean_output_tokens)
        for name, cv in (("prompt_cv", self.prompt_cv), ("output_cv", self.output_cv)):
            if not 0 <= cv < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, but got {cv}.")
        for name, maximum in (
            ("max_prompt_tokens", self.max_prompt_tokens),
            ("max_output_tokens", self.max_output_tokens),
        ):
            if maximum is not None:
                _check_at_least_1(**{name: maximum})

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        prompt_rng, output_rng = rng.spawn(2)
        return Lengths(
            prompt_tokens=_lognormal(
                num_requests, self.mean_prompt_tokens, self.prompt_cv, self.max_prompt_tokens, prompt_rng
            ),
            output_tokens=_lognormal(
                num_requests, self.mean_output_tokens, self.output_cv, self.max_output_tokens, output_rng
            ),
        )


def instructcoder_lengths(
    *, mean_prompt_tokens: float = 145, output_tokens: int = 200, prompt_cv: float = 0.4
) -> LognormalLengths:
    """Requests like those of `vllm bench serve` with the InstructCoder data set: prompts vary, every output has one length.

    The means are those of the measured runs in the serving data; nobody wrote down how prompts spread, prompt_cv is a guess.
    """
    return LognormalLengths(
        mean_prompt_tokens=mean_prompt_tokens, mean_output_tokens=output_tokens, prompt_cv=prompt_cv, output_cv=0.0
    )


def _lognormal(num: int, mean: float, cv: float, maximum: int | None, rng: np.random.Generator) -> Counts:
    """(num,) whole numbers from 1. If log X ~ N(m, s^2), then E X = exp(m + s^2 / 2) and CV^2 = exp(s^2) - 1."""
    variance = math.log1p(cv**2)
    drawn = np.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * rng.standard_normal(num))
    return np.clip(np.rint(drawn), 1, maximum).astype(np.int64)


def _check_at_least_1(**values: float) -> None:
    for name, value in values.items():
        if not 1 <= value < math.inf:
            raise ValueError(f"{name} must be at least 1, but got {value}.")

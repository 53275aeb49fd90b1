"""What a target answers to the decision maker, wherever it runs: in this process, or in another one behind a channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from executor.request import Request
from executor.roles.scoring import Scores
from sim.decoding.machine import ClassProbs
from traces.schema import Sampling


class TargetVerdict(NamedTuple):
    """The outcome of a verification and when the target worked on it (seconds of time.perf_counter).

    predict_s: of these, what H-RAD's prediction took; class_probs: its result, None when it was not asked for.
    """

    num_accepted: int
    next_token: int
    start_s: float
    end_s: float
    predict_s: float
    class_probs: ClassProbs | None


class Prefill(NamedTuple):
    """A finished prefill. class_probs: H-RAD's prediction after the prompt, None when it was not asked for."""

    num_cached: int
    start_s: float
    end_s: float
    class_probs: ClassProbs | None


class Target(Protocol):
    """The decision maker's handle on a target, wherever it runs. Times are seconds of time.perf_counter."""

    is_alive: bool
    layouts: Mapping[str, str]  # of its engine's weights; empty where the engine has no choice

    @property
    def pid(self) -> int:
        """Process that the target runs in."""
        ...

    @property
    def num_captures(self) -> int:
        """Graphs captured so far; 0 without graphs."""
        ...

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Start a request and its prefill; predicts: whether H-RAD's classes are wanted."""
        ...

    def wait_prefill(self) -> Prefill:
        """The end of the prefill under way."""
        ...

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """Start to verify the pending tokens after num_cached committed ones and `last`, the newest.

        The caller says where the line ends, so that it alone decides what was committed.
        """
        ...

    def has_verdict(self) -> bool:
        """Whether the outcome is there already, without waiting; False where nobody can tell."""
        ...

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way."""
        ...

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks; at temperature 0 the laws at temperature 1."""
        ...

    def close(self) -> None:
        """Give back what the target holds."""
        ...

"""The typed plan of one step: which requests run with which rounds, and which pieces of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from sim.serving.rounds.base import Ints, Rounds


class Chunk(NamedTuple):
    """A piece of one request's prompt: num_tokens new tokens after context_tokens that are in the cache."""

    request: int
    num_tokens: int
    context_tokens: int
    is_last: bool


@dataclass(slots=True)
class StepPlan:
    """What draft and target do in one step of a replica.

    contexts: (running,) tokens of each running request in the target's cache. context_tokens: their sum.
    rounds: one of each running request; None while nothing runs. chunks: pieces of prompts that the target reads in this step.
    joined_tokens: prompt tokens that the draft reads as a part of its first forward.
    """

    contexts: Ints
    context_tokens: int
    rounds: Rounds | None
    chunks: list[Chunk] = field(default_factory=list)
    joined_tokens: int = 0

    @property
    def num_running(self) -> int:
        """Requests that decode."""
        return len(self.contexts)

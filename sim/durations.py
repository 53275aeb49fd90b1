"""How long a run of forwards takes: means read from tables, or one draw for each forward; and what a cold draft adds."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.decoding.draft_cache import Forwards
from sim.latency.base import LatencyModel
from traces.fits.cold_start import ColdStart
from traces.schema import OpKind, OpShape

_FIRST_TABLE_LENGTH = 1024
_PREFILL = OpKind.PREFILL  # asked at each operation, and a member is looked up slowly


class Durations(Protocol):
    """Times of one request's operations."""

    def of(self, forwards: Forwards) -> list[float]:
        """Seconds of each forward, in order."""
        ...


class MeanDurations:
    """Mean times. One table over contexts for each other feature of a shape, grown when a context asks for it.

    longest: context that the tables reach from the start.
    """

    def __init__(self, latency: LatencyModel, longest: int = 0) -> None:
        self._latency = latency
        self._first_length = max(_FIRST_TABLE_LENGTH, longest + 1)
        self._tables: dict[tuple[OpKind, int, int], list[float]] = {}

    def of(self, forwards: Forwards) -> list[float]:
        actor, kind, count, first_tokens, num_branches, context = forwards
        if kind is _PREFILL:  # once a request: no table
            return [self._latency.mean_s(OpShape(actor, kind, first_tokens, num_branches, context))] * count
        if first_tokens == 1:
            last = context + count
            return self._table(kind, 1, num_branches, last)[context:last]
        first_s = self._table(kind, first_tokens, num_branches, context)[context : context + 1]
        if count == 1:
            return first_s
        context += first_tokens
        last = context + count - 1
        return first_s + self._table(kind, 1, num_branches, last)[context:last]

    def _table(self, kind: OpKind, num_tokens: int, num_branches: int, last: int) -> list[float]:
        """Means by context, as far as `last` at least."""
        table = self._tables.get((kind, num_tokens, num_branches))
        if table is None or len(table) <= last:
            table = self._extend(kind, num_tokens, num_branches, last)
        return table

    def _extend(self, kind: OpKind, num_tokens: int, num_branches: int, context: int) -> list[float]:
        """A table of means that reaches a context, and as far again if that is more than was foreseen."""
        length = self._first_length if context < self._first_length else 2 * (context + 1)
        table: list[float] = self._latency.mean_array(kind, num_tokens, num_branches, np.arange(length)).tolist()
        self._tables[kind, num_tokens, num_branches] = table
        return table


class DrawnDurations:
    """Drawn times. Each purpose has a generator of its own, so that policies share what luck they can."""

    def __init__(self, latency: LatencyModel, rng: np.random.Generator) -> None:
        self._latency = latency
        prefill, draft, verify, host = rng.spawn(4)
        self._rngs = {
            OpKind.PREFILL: prefill,
            OpKind.DRAFT: draft,
            OpKind.LOOK: draft,
            OpKind.BRANCH: draft,
            OpKind.VERIFY: verify,
            OpKind.HOST: host,
        }

    def of(self, forwards: Forwards) -> list[float]:
        rng = self._rngs[forwards.kind]
        return [self._latency.draw_s(shape, rng) for shape in forwards.shapes()]


class Warmth:
    """How cold the draft is from round to round; see `traces.fits.cold_start`. A request begins cold: its prompt has passed.

    takes_turns: nothing is drafted during a verification, so that the draft waits for all of it.
    """

    def __init__(self, cold_start: ColdStart, *, takes_turns: bool) -> None:
        self._cold_start, self._takes_turns = cold_start, takes_turns
        self._waking_s = cold_start.first_s
        self._verify_s = self._ahead_s = 0.0
        self._num_forwards = 0

    def drafted_s(self, times: list[float]) -> float:
        """Seconds of these forwards, warm in `times`, which grow by what waking takes."""
        spent_s = sum(times)
        self._ahead_s += spent_s
        self._num_forwards += len(times)
        if self._waking_s:
            for ordinal in range(len(times)):
                times[ordinal] += self._waking_s
                spent_s += self._waking_s
                self._waking_s *= self._cold_start.decay
        return spent_s

    def woken(self, times: list[float]) -> list[float]:
        """These forwards with what waking takes of each, were they done now; nothing is noted."""
        waking_s = [self._waking_s * self._cold_start.decay**ordinal for ordinal in range(len(times))]
        return [seconds + waking for seconds, waking in zip(times, waking_s, strict=True)]

    def verify(self, seconds: float) -> None:
        """The target starts; what is drafted from here on is beside it."""
        self._verify_s, self._ahead_s = seconds, 0.0

    def close_round(self) -> None:
        """See how cold the draft has become meanwhile."""
        if self._cold_start.first_s:
            wait_s = self._verify_s if self._takes_turns else self._verify_s - self._ahead_s
            self._waking_s = self._cold_start.waking_s(wait_s, self._num_forwards)
        self._num_forwards = 0

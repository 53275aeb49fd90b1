"""How long a run of forwards takes: means read from tables, or one draw for each forward."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.decoding.draft_cache import Forwards
from sim.latency.base import LatencyModel
from traces.schema import OpKind, OpShape

_FIRST_TABLE_LENGTH = 1024


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
        if kind == OpKind.PREFILL:  # once a request: no table
            return [self._latency.mean_s(OpShape(actor, kind, first_tokens, num_branches, context))] * count
        if first_tokens == 1:
            last = context + count
            return self._table(kind, 1, num_branches, last)[context:last]
        first_s = self._table(kind, first_tokens, num_branches, context)[context]
        if count == 1:
            return [first_s]
        context += first_tokens
        last = context + count - 1
        return [first_s, *self._table(kind, 1, num_branches, last)[context:last]]

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

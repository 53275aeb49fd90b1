"""How long a run of forwards takes: means read from tables, or one draw for each forward."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.latency import LatencyModel, OpShape
from sim.shapes import Forwards

_FIRST_TABLE_LENGTH = 1024


class Durations(Protocol):
    """Times of one request's operations."""

    def of(self, forwards: Forwards) -> list[float]:
        """Seconds of each forward, in order."""
        ...


class MeanDurations:
    """Mean times. One table over contexts for each other feature of a shape, grown when a context asks for it."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency
        self._tables: dict[tuple[str, int, int], list[float]] = {}

    def of(self, forwards: Forwards) -> list[float]:
        actor, kind, count, first_tokens, num_branches, context = forwards
        if kind == "prefill":  # once a request: no table
            return [self._latency.mean_s(OpShape(actor, kind, first_tokens, num_branches, context))] * count
        if count == 1:
            return [self._table(kind, first_tokens, num_branches, context + 1)[context]]
        stop = context + first_tokens + count - 1
        later = self._table(kind, 1, num_branches, stop)
        if first_tokens == 1:
            return later[context:stop]
        first = self._table(kind, first_tokens, num_branches, context + 1)[context]
        return [first, *later[context + first_tokens : stop]]

    def _table(self, kind: str, num_tokens: int, num_branches: int, length: int) -> list[float]:
        """Means at contexts 0 to at least length - 1."""
        table = self._tables.get((kind, num_tokens, num_branches))
        if table is None or len(table) < length:
            contexts = np.arange(max(length, 2 * len(table or ()), _FIRST_TABLE_LENGTH))
            means = self._latency.mean_array(kind, num_tokens, num_branches, contexts)
            table = means.tolist()
            self._tables[kind, num_tokens, num_branches] = table
        return table


class DrawnDurations:
    """Drawn times. Each purpose has a generator of its own, so that policies share what luck they can."""

    def __init__(self, latency: LatencyModel, rng: np.random.Generator) -> None:
        self._latency = latency
        prefill, draft, verify, host = rng.spawn(4)
        self._rngs = {
            "prefill": prefill,
            "draft": draft,
            "look": draft,
            "branch": draft,
            "verify": verify,
            "host": host,
        }

    def of(self, forwards: Forwards) -> list[float]:
        actor, kind, count, first_tokens, num_branches, context = forwards
        rng = self._rngs[kind]
        seconds = []
        for index in range(count):
            num_tokens = first_tokens if index == 0 else 1
            seconds.append(self._latency.draw_s(OpShape(actor, kind, num_tokens, num_branches, context), rng))
            context += num_tokens
        return seconds

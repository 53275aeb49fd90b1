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
            table = self._tables.get((kind, first_tokens, num_branches))
            if table is None or len(table) <= context:
                table = self._extend(kind, first_tokens, num_branches, context)
            return [table[context]]
        if first_tokens == 1:
            last = context + count - 1
            table = self._tables.get((kind, 1, num_branches))
            if table is None or len(table) <= last:
                table = self._extend(kind, 1, num_branches, last)
            return table[context : last + 1]
        first = Forwards(actor, kind, 1, first_tokens, num_branches, context)
        later = Forwards(actor, kind, count - 1, 1, num_branches, context + first_tokens)
        return self.of(first) + self.of(later)

    def _extend(self, kind: str, num_tokens: int, num_branches: int, context: int) -> list[float]:
        """A table of means that reaches a context, and as far again."""
        contexts = np.arange(max(2 * (context + 1), _FIRST_TABLE_LENGTH))
        table: list[float] = self._latency.mean_array(kind, num_tokens, num_branches, contexts).tolist()
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

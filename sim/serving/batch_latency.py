"""A request among equals: the latencies that each of so many requests meets when all of them take the same step together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sim.latency.base import Array, PlainLatency, actor_of
from sim.serving.costs import SummedModel
from traces.schema import Actor, OpKind, OpShape


@dataclass(frozen=True)
class BatchLatency(PlainLatency):
    """Seconds of one forward of a batch in which each request asks for the same: what its settings should follow from where it
    is served with others. Every branch counts as a request with its whole context, as in `SummedCosts`.

    num_requests: that run at once.
    """

    model: SummedModel
    num_requests: int = 1

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ValueError(f"num_requests must be at least 1, but got {self.num_requests}.")

    def mean_s(self, op: OpShape) -> float:
        if op.actor is Actor.HOST or op.kind in (OpKind.READ, OpKind.PREDICT):
            return 0.0
        rows = op.num_branches * self.num_requests
        seconds = self.model.target_s if op.actor is Actor.TARGET else self.model.draft_s
        return seconds(op.num_tokens * rows, op.context_tokens * rows, rows)

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.mean_s(op)

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        who = actor or actor_of(kind)

        def one(tokens: int, rows: int, context: int) -> float:
            return self.mean_s(OpShape(who, kind, int(tokens), int(rows), int(context)))

        arrays = np.broadcast_arrays(num_tokens, num_branches, context_tokens)
        seconds: Array = np.vectorize(one, otypes=[float])(*arrays)
        return seconds

"""Other costs than were measured: verification that widens at a given rate, whatever the hardware here does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sim.latency.base import Array, LatencyOver
from traces.schema import Actor, OpKind, OpShape


@dataclass(frozen=True)
class LinearVerification(LatencyOver):
    """Another latency model whose verification of n tokens takes (1 + widening (n - 1)) times that of one.

    widening: what each further token adds, in target forwards; 0 is flat, as where reading the weights bounds a forward (the
    paper's GPUs).
    """

    widening: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.widening < float("inf"):
            raise ValueError(f"widening must be at least 0 target forwards a token, but got {self.widening}.")

    def mean_s(self, op: OpShape) -> float:
        if op.kind != OpKind.VERIFY:
            return self.base.mean_s(op)
        return self.base.mean_s(op._replace(num_tokens=1)) * (1 + self.widening * (op.num_tokens - 1))

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        if op.kind != OpKind.VERIFY:
            return self.base.draw_s(op, rng)
        return self.base.draw_s(op._replace(num_tokens=1), rng) * (1 + self.widening * (op.num_tokens - 1))

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        if kind != OpKind.VERIFY:
            return self.base.mean_array(kind, num_tokens, num_branches, context_tokens, actor=actor)
        width = np.asarray(num_tokens, float)
        one: Array = self.base.mean_array(kind, np.ones(width.shape, int), num_branches, context_tokens, actor=actor)
        seconds: Array = one * (1 + self.widening * (width - 1))
        return seconds

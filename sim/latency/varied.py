"""Another latency model with single prices changed: what a study of "what if" asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sim.latency.base import Array, LatencyOver
from traces.schema import Actor, OpKind, OpShape


@dataclass(frozen=True, kw_only=True)
class VariedLatency(LatencyOver):
    """verify_further_s: seconds that each token of a verification after its
    first takes more (less where it is negative; a verification never takes less than that of one token). host_further_s:
    seconds that the host takes more in each round."""

    verify_further_s: float = 0.0
    host_further_s: float = 0.0

    def mean_s(self, op: OpShape) -> float:
        means = self.mean_array(op.kind, op.num_tokens, op.num_branches, op.context_tokens, actor=op.actor)
        return float(means)

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.base.draw_s(op, rng) * self.mean_s(op) / max(self.base.mean_s(op), 1e-12)

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        means = self.base.mean_array(kind, num_tokens, num_branches, context_tokens, actor=actor)
        if kind == OpKind.VERIFY and self.verify_further_s:
            single = self.base.mean_array(kind, 1, num_branches, context_tokens, actor=actor)
            return np.maximum(means + self.verify_further_s * (np.asarray(num_tokens, float) - 1), single)
        if kind == OpKind.HOST:
            return means + self.host_further_s
        return means

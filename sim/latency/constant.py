"""The textbook's latency: every forward of a model costs the same.

>>> textbook = ConstantLatency(draft_s=0.002, verify_s=0.020)
>>> textbook.mean_s(OpShape(Actor.TARGET, OpKind.VERIFY, num_tokens=5, num_branches=1, context_tokens=300))
0.02
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sim.latency.base import Array, PlainLatency, actor_of
from traces.fits.calibration import group_of
from traces.schema import Actor, OpKind, OpShape


@dataclass(frozen=True, kw_only=True)
class ConstantLatency(PlainLatency):
    """The textbook's: a forward costs the same at any width and depth. branch_s: what each further row adds to a draft's.

    Leviathan et al. 2023, arXiv:2211.17192, section 3.3, and arXiv:2506.01979 assume this, with free rows; it is wrong on
    hardware as soon as a forward is not bound by reading the weights.
    """

    draft_s: float
    verify_s: float
    host_s: float = 0.0
    draft_prefill_s: float = 0.0
    target_prefill_s: float = 0.0
    branch_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 seconds, but got {getattr(self, name)}.")

    def _seconds(self, actor: Actor, kind: OpKind) -> float:
        group = group_of(actor, kind)
        return float(getattr(self, f"{group}_s"))

    def mean_s(self, op: OpShape) -> float:
        further = self.branch_s * (op.num_branches - 1) if op.kind == OpKind.BRANCH else 0.0
        return self._seconds(op.actor, op.kind) + further

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
        shape = np.broadcast_shapes(np.shape(num_tokens), np.shape(num_branches), np.shape(context_tokens))
        means = np.full(shape, self._seconds(actor or actor_of(kind), kind))
        return means + self.branch_s * (np.asarray(num_branches) - 1) if kind == OpKind.BRANCH else means

"""How long one operation takes in the simulator: constant, fitted or resampled (`sim.roofline`: from the hardware).

All times are seconds. `mean_s` and `draw_s` serve the event loop, `mean_array` the sweeps.

>>> textbook = ConstantLatency(draft_s=0.002, verify_s=0.020)
>>> textbook.mean_s(OpShape("target", "verify", num_tokens=5, num_branches=1, context_tokens=300))
0.02
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.policies.base import Policy
from traces.calibration import AHEAD_KINDS, Calibration, LatencyFit, group_of, groups_of
from traces.cold_start import ColdStart

Array = NDArray[np.float64]

_ACTOR_OF = {
    "draft": "draft",
    "look": "draft",
    "branch": "draft",
    "verify": "target",
    "predict": "target",
    "prefill": "target",
    "host": "host",
}


class OpShape(NamedTuple):
    """What decides how long an operation takes: as in `traces.schema.Op`, one forward of num_branches rows.

    num_tokens: new tokens a row (verify: pending + 1; host: pending). context_tokens: tokens in the cache before.
    """

    actor: str
    kind: str
    num_tokens: int
    num_branches: int
    context_tokens: int


class Conditions(NamedTuple):
    """What of a policy the times of its operations depend on.

    drafts: the draft runs at all, and uses the caches that the target's weights lie in. reads_signals: its forwards
    include reading their signals. overlaps: two models are at work at once, and slow each other down. predicts: H-RAD
    predicts after every verification, which includes it.
    """

    drafts: bool = False
    reads_signals: bool = False
    overlaps: bool = False
    predicts: bool = False

    @classmethod
    def of(cls, policy: Policy, *, same_device: bool = False) -> Conditions:
        """same_device: the models take turns, so that nothing runs beside anything."""
        needs = policy.needs
        return cls(needs.drafts, needs.signals, policy.overlaps and not same_device, needs.classes)


class LatencyModel(Protocol):
    """Seconds of an operation."""

    @property
    def cold_start(self) -> ColdStart:
        """What the first draft forwards of a round take more than later ones."""
        ...

    def under(self, conditions: Conditions) -> LatencyModel:
        """The same latencies as a policy meets them."""
        ...

    def mean_s(self, op: OpShape) -> float:
        """Mean."""
        ...

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        """One draw, with this mean."""
        ...

    def mean_array(
        self, kind: str, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike, *, actor: str = ""
    ) -> Array:
        """Means of arrays that broadcast. actor: for a prefill, target unless said otherwise."""
        ...


class SameForAll:
    """The answers of a model that knows neither cold starts nor the cost of signals nor interference."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart()

    def under(self, conditions: Conditions) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class ConstantLatency(SameForAll):
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

    def _seconds(self, actor: str, kind: str) -> float:
        group = group_of(actor, kind)
        return float(getattr(self, f"{group}_s"))

    def mean_s(self, op: OpShape) -> float:
        further = self.branch_s * (op.num_branches - 1) if op.kind == "branch" else 0.0
        return self._seconds(op.actor, op.kind) + further

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.mean_s(op)

    def mean_array(
        self, kind: str, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike, *, actor: str = ""
    ) -> Array:
        shape = np.broadcast_shapes(np.shape(num_tokens), np.shape(num_branches), np.shape(context_tokens))
        means = np.full(shape, self._seconds(actor or actor_of(kind), kind))
        return means + self.branch_s * (np.asarray(num_branches) - 1) if kind == "branch" else means


class FittedLatency:
    """The affine laws of a calibration; draws multiply the mean by a recorded ratio measured / fitted.

    is_noisy: False makes every draw the mean. conditions: what they are asked for; reading signals and H-RAD's predictions
    were recorded apart, because only some policies want them (nothing is added for what was not recorded).
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        is_noisy: bool = True,
        conditions: Conditions | None = None,
    ) -> None:
        self.calibration = calibration
        self.is_noisy = is_noisy
        # The draft looks and branches during a verification only; other forwards have the device to themselves.
        drafts, reads_signals, overlaps, predicts = conditions or Conditions()
        self._slowed = dict.fromkeys(AHEAD_KINDS, calibration.draft_beside if overlaps else 1.0)
        self._slowed["verify"] = (calibration.drafting if drafts else 1.0) * (calibration.beside if overlaps else 1.0)
        self._read = calibration.fits.get("read") if reads_signals else None
        self._predict = calibration.fits.get("predict") if predicts else None
        self._fits: dict[tuple[str, str], tuple[LatencyFit, tuple[float, ...], int]] = {}

    def _fit(self, actor: str, kind: str) -> tuple[LatencyFit, tuple[float, ...], int]:
        found = self._fits.get((actor, kind))
        if found is None:
            fit = self.calibration.fit_of(group_of(actor, kind))
            found = self._fits[actor, kind] = (fit, fit.ratios, len(fit.ratios))
        return found

    @property
    def cold_start(self) -> ColdStart:
        return self.calibration.cold_start

    def under(self, conditions: Conditions) -> FittedLatency:
        return FittedLatency(self.calibration, is_noisy=self.is_noisy, conditions=conditions)

    def mean_s(self, op: OpShape) -> float:
        mean = self._fit(op.actor, op.kind)[0].mean_s(op.num_tokens, op.num_branches, op.context_tokens)
        return mean * self._slowed.get(op.kind, 1.0) + self._further_s(op)

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        fit, ratios, num_ratios = self._fit(op.actor, op.kind)
        mean = fit.mean_s(op.num_tokens, op.num_branches, op.context_tokens)
        drawn = mean * ratios[int(rng.random() * num_ratios)] if self.is_noisy else mean
        return drawn * self._slowed.get(op.kind, 1.0) + self._further_s(op)

    def mean_array(
        self, kind: str, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike, *, actor: str = ""
    ) -> Array:
        means = self._fit(actor or actor_of(kind), kind)[0].mean_array(num_tokens, num_branches, context_tokens)
        if kind in self._slowed:
            means = means * self._slowed[kind]
        if self._read is not None and kind in _SIGNALLED:
            means = means + self._read.mean_array(1, num_branches, context_tokens)
        if self._predict is not None and kind == "verify":
            means = means + self._predict.mean_array(1, 1, context_tokens)
        return means

    def _further_s(self, op: OpShape) -> float:
        """What policies of this kind do besides the forward."""
        if self._read is not None and op.kind in _SIGNALLED:
            return self._read.mean_s(1, op.num_branches, op.context_tokens)
        if self._predict is not None and op.kind == "verify":
            return self._predict.mean_s(1, 1, op.context_tokens)
        return 0.0


# Forwards whose laws are read at once. Of the branches only the hit one's are, when the round settles: the host's time.
_SIGNALLED = ("draft", "look")


class EmpiricalLatency(SameForAll):
    """Measured operations themselves: the ones nearest in shape are resampled.

    Distances count relative changes of tokens, branches and context alike. Nothing is extrapolated: outside of what was
    recorded, the edge answers. num_nearest: at least this many operations (and all of an equal shape) answer.
    """

    def __init__(self, ops: pd.DataFrame, *, num_nearest: int = 32) -> None:
        """ops: columns as in a run's ops table."""
        if num_nearest < 1:
            raise ValueError(f"num_nearest must be at least 1, but got {num_nearest}.")
        self.num_nearest = num_nearest
        self._groups: dict[str, tuple[Array, Array]] = {}
        self._known: dict[OpShape, tuple[float, Sequence[float]]] = {}
        names = groups_of(ops)
        shapes = _log_shapes(ops["num_tokens"], ops["num_branches"], ops["context_tokens"])
        seconds = (ops["end_s"] - ops["start_s"]).to_numpy(float)
        for group in sorted(set(names.tolist())):
            self._groups[group] = shapes[names == group], seconds[names == group]

    def _nearest(self, op: OpShape) -> tuple[float, Sequence[float]]:
        found = self._known.get(op)
        if found is None:
            group = group_of(op.actor, op.kind)
            if group not in self._groups:
                raise ValueError(f"no {group} operation was recorded (only {', '.join(self._groups) or 'none'}).")
            shapes, seconds = self._groups[group]
            distances = np.abs(shapes - _log_shapes(op.num_tokens, op.num_branches, op.context_tokens)).sum(axis=-1)
            last = min(self.num_nearest, len(seconds)) - 1
            chosen = seconds[distances <= np.partition(distances, last)[last]]
            found = self._known[op] = float(chosen.mean()), chosen.tolist()
        return found

    def mean_s(self, op: OpShape) -> float:
        return self._nearest(op)[0]

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        seconds = self._nearest(op)[1]
        return seconds[int(rng.random() * len(seconds))]

    def mean_array(
        self, kind: str, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike, *, actor: str = ""
    ) -> Array:
        actor = actor or actor_of(kind)
        tokens, branches, context = np.broadcast_arrays(num_tokens, num_branches, context_tokens)
        stacked = np.stack([tokens.ravel(), branches.ravel(), context.ravel()], axis=1)
        distinct, which = np.unique(stacked, axis=0, return_inverse=True)
        means = np.array([self.mean_s(OpShape(actor, kind, *row)) for row in distinct.tolist()], float)
        found: Array = means[which.ravel()].reshape(tokens.shape)
        return found


def actor_of(kind: str) -> str:
    """Who does operations of this kind; of a prefill, the target."""
    if kind not in _ACTOR_OF:
        raise ValueError(f"there is no operation {kind!r}; known are {', '.join(_ACTOR_OF)}.")
    return _ACTOR_OF[kind]


def _log_shapes(num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike) -> Array:
    """(ops, 3): distances between these are relative changes."""
    shapes = [np.log1p(np.asarray(values, float)) for values in (num_tokens, num_branches, context_tokens)]
    found: Array = np.stack(shapes, axis=-1)
    return found

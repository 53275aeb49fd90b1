"""Latencies of a calibration: fitted laws for means, recorded ratios for draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from sim.latency.base import FURTHER, Array, Conditions, actor_of
from sim.latency.uncertain import Moved
from traces.fits.calibration import Calibration, LatencyFit, group_of
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference
from traces.fits.latency import TERMS
from traces.schema import Actor, OpKind, OpShape


class FittedLatency:
    """The affine laws of a calibration; draws multiply the mean by a recorded ratio measured / fitted.

    is_noisy: False makes every draw the mean. conditions: what they are asked for; reading signals and H-RAD's predictions
    were recorded apart, because only some policies want them (nothing is added for what was not recorded).
    """

    def __init__(
        self, calibration: Calibration, *, is_noisy: bool = True, conditions: Conditions | None = None
    ) -> None:
        self.calibration = calibration
        self.is_noisy = is_noisy
        self.conditions = conditions or Conditions()
        drafts, reads_signals, predicts = self.conditions
        self._slowed = {OpKind.VERIFY: calibration.drafting if drafts else 1.0}
        self._read = calibration.fits.get("read") if reads_signals else None
        self._predict = calibration.fits.get("predict") if predicts else None
        self._fits: dict[tuple[str, str], tuple[LatencyFit, tuple[float, ...], int]] = {}

    def __repr__(self) -> str:
        return f"FittedLatency({self.calibration!r}, is_noisy={self.is_noisy}, conditions={self.conditions})"

    def _fit(self, actor: Actor, kind: OpKind) -> tuple[LatencyFit, tuple[float, ...], int]:
        known = self._fits.get((actor, kind))
        if known is None:
            fit = self.calibration.fit_of(group_of(actor, kind))
            known = self._fits[actor, kind] = (fit, fit.ratios, len(fit.ratios))
        return known

    @property
    def cold_start(self) -> ColdStart:
        return self.calibration.cold_start

    @property
    def interference(self) -> Interference:
        return self.calibration.interference

    def under(self, conditions: Conditions) -> FittedLatency:
        return FittedLatency(self.calibration, is_noisy=self.is_noisy, conditions=conditions)

    def moved(self) -> list[Moved]:
        """Every coefficient at each end of its 95% interval, but for those of prefills, which no choice depends on."""
        moves = []
        for group, fit in self.calibration.fits.items():
            for index, term in enumerate(TERMS):
                if group.endswith("prefill") or term in fit.left_out:
                    continue
                for end in dict.fromkeys(fit.intervals[index]):
                    moved = replace(fit, coefficients=(*fit.coefficients[:index], end, *fit.coefficients[index + 1 :]))
                    calibration = replace(self.calibration, fits={**self.calibration.fits, group: moved})
                    latency = FittedLatency(calibration, is_noisy=self.is_noisy, conditions=self.conditions)
                    moves.append(Moved(group, term, fit.coefficients[index], end, latency))
        return moves

    def mean_s(self, op: OpShape) -> float:
        mean = self._fit(op.actor, op.kind)[0].mean_s(op.num_tokens, op.num_branches, op.context_tokens)
        return mean * self._slowed.get(op.kind, 1.0) + self.further_s(op)

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        fit, ratios, num_ratios = self._fit(op.actor, op.kind)
        mean = fit.mean_s(op.num_tokens, op.num_branches, op.context_tokens)
        drawn = mean * ratios[int(rng.random() * num_ratios)] if self.is_noisy else mean
        return drawn * self._slowed.get(op.kind, 1.0) + self.further_s(op)

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        means = self._fit(actor or actor_of(kind), kind)[0].mean_array(num_tokens, num_branches, context_tokens)
        if kind in self._slowed:
            means = means * self._slowed[kind]
        if self._read is not None and FURTHER.get(kind) == OpKind.READ:
            means = means + self._read.mean_array(1, num_branches, context_tokens)
        if self._predict is not None and kind == OpKind.VERIFY:
            means = means + self._predict.mean_array(1, 1, context_tokens)
        return means

    def further_s(self, op: OpShape) -> float:
        """What policies of this kind do besides the forward."""
        if self._read is not None and FURTHER.get(op.kind) == OpKind.READ:
            return self._read.mean_s(1, op.num_branches, op.context_tokens)
        if self._predict is not None and op.kind == OpKind.VERIFY:
            return self._predict.mean_s(1, 1, op.context_tokens)
        return 0.0

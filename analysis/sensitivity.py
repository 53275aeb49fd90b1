"""How much the answer hangs on each fitted parameter: move it to the ends of its interval and choose again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.evaluation import Timing, Workload, evaluate
from traces.calibration import Calibration
from traces.latency_fit import TERMS

NUM_CONTENDERS = 12


@dataclass(frozen=True, kw_only=True)
class ParameterEffect:
    """One coefficient of a latency law at one end of its 95% interval.

    best: the fastest contender then. speed_change: of the policy chosen before, relative. regret: what keeping that policy
    would lose against `best`, relative.
    """

    group: str
    term: str
    fitted: float
    moved_to: float
    best: str
    speed_change: float
    regret: float

    @property
    def flips(self) -> bool:
        """Whether another policy would have been chosen."""
        return self.regret > 0


def parameter_effects(
    workload: Workload, timing: Timing, contenders: Sequence[str], chosen: str
) -> list[ParameterEffect]:
    """Effects of every coefficient on the choice among the contenders, largest regret first; mean latencies."""
    labels = tuple(dict.fromkeys([chosen, *contenders[:NUM_CONTENDERS]]))
    moves = [
        (group, index, term, end)
        for group, fit in workload.calibration.fits.items()
        if not group.endswith("prefill")
        for index, term in enumerate(TERMS)
        if term not in fit.left_out
        for end in dict.fromkeys(fit.intervals[index])
    ]
    base = _speeds(workload, timing, workload.calibration, labels)
    effects = []
    for group, index, term, end in moves:
        fit = workload.calibration.fits[group]
        coefficients = (*fit.coefficients[:index], end, *fit.coefficients[index + 1 :])
        moved = replace(
            workload.calibration, fits={**workload.calibration.fits, group: replace(fit, coefficients=coefficients)}
        )
        speeds = _speeds(workload, timing, moved, labels)
        best = int(np.argmax(speeds))
        effects.append(
            ParameterEffect(
                group=group,
                term=term,
                fitted=fit.coefficients[index],
                moved_to=end,
                best=labels[best] if speeds[best] > speeds[0] else chosen,
                speed_change=float(speeds[0] / base[0] - 1),
                regret=float(max(0.0, 1 - speeds[0] / speeds[best])),
            )
        )
    return sorted(effects, key=lambda effect: -effect.regret)


def _speeds(
    workload: Workload, timing: Timing, calibration: Calibration, labels: tuple[str, ...]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    moved = replace(workload, calibration=calibration, timings=(timing,), seed=None)
    found = evaluate(moved, labels)
    speeds: np.ndarray[tuple[int], np.dtype[np.float64]] = found.counts["num_emitted"].sum(axis=1) / found.seconds[
        "decode_s"
    ][0].sum(axis=1)
    return speeds

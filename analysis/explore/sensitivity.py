"""How much the answer hangs on each fitted parameter: move it to the ends of its interval and choose again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.explore.evaluation import Timing, Workload, speeds_under
from traces.fits.latency import TERMS

NUM_CONTENDERS = 12


@dataclass(frozen=True, kw_only=True)
class ParameterEffect:
    """One coefficient of a latency law at one end of its 95% interval.

    best: the fastest contender then. speed_change: of the policy chosen before, relative. regret: what keeping that
    policy would lose against `best`, relative.
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
    calibrations = [workload.calibration]
    for group, index, _, end in moves:
        fit = workload.calibration.fits[group]
        moved = replace(fit, coefficients=(*fit.coefficients[:index], end, *fit.coefficients[index + 1 :]))
        calibrations.append(replace(workload.calibration, fits={**workload.calibration.fits, group: moved}))
    speeds = speeds_under(workload, timing, labels, calibrations)
    effects = []
    for (group, index, term, end), moved_speeds in zip(moves, speeds[1:], strict=True):
        best = int(np.argmax(moved_speeds))  # the first of equals, so the chosen one where nothing beats it
        effects.append(
            ParameterEffect(
                group=group,
                term=term,
                fitted=workload.calibration.fits[group].coefficients[index],
                moved_to=end,
                best=labels[best],
                speed_change=float(moved_speeds[0] / speeds[0, 0] - 1),
                regret=float(1 - moved_speeds[0] / moved_speeds[best]),
            )
        )
    return sorted(effects, key=lambda effect: -effect.regret)

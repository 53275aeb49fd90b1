"""The highest rate that a replica holds within its objectives, by bisection on the simulator, with replications."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

PRECISION, COARSE = 0.02, 0.12  # of the bracket that a bisection ends with; the latter to tell methods apart
WIDE_STEP, NARROW_STEP = 1.6, 1.1
_MAX_STEP, _MAX_TRIES = 4.0, 12


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Rates, requests a second, that one replica holds: one of each replication, on the same requests for every method.

    mean, interval: 95%, by Student's t over the replications; the whole half-line where there is one.
    """

    rates: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.rates))

    @property
    def interval(self) -> tuple[float, float]:
        if len(self.rates) < 2:
            return 0.0, math.inf
        half = stats.t.ppf(0.975, len(self.rates) - 1) * stats.sem(self.rates)
        return self.mean - half, self.mean + half

    @property
    def relative_width(self) -> float:
        """Half-width of the interval over the mean."""
        return (self.interval[1] - self.mean) / self.mean if self.mean else math.inf

    def chance_above(self, other: Capacity) -> float:
        """How sure it is that this capacity is the larger one, by a paired t-test over the common replications."""
        pairs = list(zip(self.rates, other.rates, strict=False))
        gains = np.array([own - others for own, others in pairs])
        if len(gains) < 2:
            return 0.5
        error = float(stats.sem(gains))
        if error == 0:
            return 0.5 + 0.5 * float(np.sign(gains[0]))
        return float(stats.t.cdf(gains.mean() / error, len(gains) - 1))


def highest_factor(
    holds: Callable[[float], bool], guess: float, *, step: float = WIDE_STEP, precision: float = PRECISION
) -> float:
    """The largest factor at which `holds` is true, to this relative precision, where it is true below and false above.

    step: between the first tries, until the answer is enclosed; small for a good guess. Its square follows, and so on.

    Gives 0 where not even a tiny part of the guess holds.
    """
    low, high, factor = 0.0, math.inf, guess
    for _ in range(_MAX_TRIES):
        if holds(factor):
            low, factor, step = factor, step * factor, min(step * step, _MAX_STEP)
        else:
            high, factor, step = factor, factor / step, min(step * step, _MAX_STEP)
        if low and high < math.inf:
            break
    if not low:
        return 0.0
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return math.sqrt(low * min(high, 2 * low))

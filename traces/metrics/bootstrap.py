"""Intervals of ratios of sums, by drawing the units of a sample again.

The units here are prompts: they differ far more than repeats of one prompt do, and policies are compared on the same prompts,
so every policy sees the same draws and a ratio of two policies is paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
LEVELS = (0.025, 0.975)  # of a central 95% interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimates:
    """One number for each policy, and what it is in each resample.

    values: (policies,). resampled: (resamples, policies).
    """

    values: Floats
    resampled: Floats

    def over(self, base: Estimates) -> Estimates:
        """Ratios to another estimate from the same resamples, resample by resample. base: of one policy, or one each."""
        return Estimates(self.values / base.values, self.resampled / base.resampled)

    def intervals(self) -> list[tuple[float, float]]:
        """The 95% interval of each policy."""
        low, high = np.quantile(self.resampled, LEVELS, axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))


def resampling_weights(num: int, *, seed: int) -> Floats:
    """(NUM_RESAMPLES, num) how often each unit is drawn; equal seeds give equal draws."""
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES).astype(float)


def ratio_of_sums(numerators: Floats, denominators: Floats, weights: Floats) -> Estimates:
    """sum(numerators) / sum(denominators) over the units, and the same of each resample.

    numerators, denominators: (policies, units). weights: (resamples, units); a resample that drew none of these units
    counts as the whole sample.
    """
    values = numerators.sum(axis=1) / denominators.sum(axis=1)
    drawn = weights @ denominators.T
    whole = np.broadcast_to(values, drawn.shape).copy()
    return Estimates(values, np.divide(weights @ numerators.T, drawn, out=whole, where=drawn > 0))

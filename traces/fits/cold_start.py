"""The draft wakes slowly: after a wait its first forwards take longer, the more so the longer it waited.

While the draft waits for a verdict the target's weights pass through the shared cache and push the draft's out, a share
of them for every second; each forward of the draft brings most of what is missing back. So the first forward of a round
takes `first_s` times the missing share more than a warm one, and every later one `decay` times as much as the one before:

    extra of forward n = first_s decay^n min(1, wait / full_s + decay^m)

n counts the round's forwards from 0, m those of the round before, and the wait is that round's verification less the
drafting beside it, both warm. Measured on two cores of a server with a shared third-level cache, where it tells serial
drafting (1.2 ms for the first forward) from overlapped (0.7 ms) within a tenth of a forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What the first draft forwards of a round take more than warm ones; see the head of this file.

    first_s: the first forward's extra seconds when nothing of the draft is cached, as in a request's first round.
    decay: of each further forward, below 1. full_s: wait that empties the cache; 0: every wait does.

    >>> ColdStart(first_s=0.8, decay=0.5, full_s=8.0).waking_s(wait_s=2.0, num_forwards=2)
    0.4
    """

    first_s: float = 0.0
    decay: float = 0.5
    full_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.first_s < math.inf and 0 <= self.decay < 1 and 0 <= self.full_s < math.inf):
            raise ValueError(f"a cold start needs first_s >= 0, 0 <= decay < 1 and full_s >= 0, but got {self}.")

    def waking_s(self, wait_s: float, num_forwards: int) -> float:
        """Extra seconds of the next round's first forward, after a round of num_forwards and a wait."""
        if self.full_s == 0:
            return self.first_s
        return self.first_s * min(1.0, max(0.0, wait_s) / self.full_s + self.decay**num_forwards)

    def share_after(self, wait_s: ArrayLike, num_forwards: ArrayLike) -> Floats:
        """`waking_s` over first_s, of arrays."""
        waits = np.maximum(np.asarray(wait_s, float), 0.0)
        if self.full_s == 0:
            return np.ones(waits.shape)
        counts = np.asarray(num_forwards, int)
        shares: Floats = np.minimum(1.0, waits / self.full_s + self._powers(counts.max(initial=0) + 1)[counts])
        return shares

    def weight_of(self, first: ArrayLike, count: ArrayLike) -> Floats:
        """Sum of decay^n over `count` forwards from number `first` on."""
        first = np.asarray(first, int)
        last = first + np.asarray(count, int)
        sums = np.append(0.0, np.cumsum(self._powers(last.max(initial=0))))
        weights: Floats = sums[last] - sums[first]
        return weights

    def _powers(self, count: int) -> Floats:
        """decay^0 .. decay^(count - 1): far faster looked up than raised, and the same digits whatever the count."""
        return np.cumprod(np.append(1.0, np.full(count, self.decay)))[:count]


def fit_cold_start(seconds: ArrayLike, order: ArrayLike, wait_s: ArrayLike, num_before: ArrayLike) -> ColdStart:
    """From seconds of draft forwards that differ in nothing but their place: number in the round, wait and number of
    forwards of the round before.

    Least squares over a grid of decays and full waits, beside a constant for warm forwards; none is longer than the
    longest wait. Slow tails (the outer tenth) do not decide the shape, but the mean cost is kept.
    """
    seconds, order, wait_s, num_before = (np.asarray(values, float) for values in (seconds, order, wait_s, num_before))
    clipped = np.clip(seconds, *np.quantile(seconds, [0.05, 0.95]))
    longest = float(wait_s[np.isfinite(wait_s)].max(initial=0.0))
    fulls = [0.0, *np.geomspace(longest / 10, 2 * longest, 24).tolist()] if longest > 0 else [0.0]
    best, least = ColdStart(), float(np.sum((clipped - clipped.mean()) ** 2))
    for full_s in fulls:
        for decay in np.linspace(0.1, 0.9, 17).tolist():
            shape = ColdStart(decay=decay, full_s=full_s)
            weight = shape.share_after(wait_s, num_before) * decay**order
            first_s, loss = _line(weight, clipped)
            if first_s > 0 and loss < least:
                kept_s, _ = _line(weight, seconds)
                best, least = ColdStart(first_s=max(0.0, kept_s), decay=decay, full_s=full_s), loss
    return best


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of the least-squares line, and the squares that it leaves."""
    x, y = x - x.mean(), y - y.mean()
    square, product = float(x @ x), float(x @ y)
    if square <= 0:
        return 0.0, float(y @ y)
    return product / square, float(y @ y) - product**2 / square

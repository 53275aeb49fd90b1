"""The draft wakes slowly: after a wait its first forwards take longer, the more so the longer it waited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What the first and the second draft forward of a round take more than later ones.

    While the draft waits for a verdict the target's weights pass through the shared cache, and the draft's have to come
    back. The wait is the mean time of the verification less that of the drafting beside it, never less than 0.

    first_s, second_s: after a wait of full_s seconds or longer, and in a request's first round. Shorter waits cost in
    proportion; full_s = 0 says that every wait costs as much.

    >>> ColdStart(first_s=0.5, second_s=0.25, full_s=4.0).after(1.0)
    (0.125, 0.0625)
    """

    first_s: float = 0.0
    second_s: float = 0.0
    full_s: float = 0.0

    def __bool__(self) -> bool:
        return self.first_s > 0 or self.second_s > 0

    def after(self, wait_s: float) -> tuple[float, float]:
        """Seconds of the first and of the second forward after this wait."""
        share = 1.0 if wait_s >= self.full_s else max(0.0, wait_s) / self.full_s
        return share * self.first_s, share * self.second_s

    def share_after(self, wait_s: ArrayLike) -> NDArray[np.float64]:
        """Of an array of waits: the part of first_s and second_s that they cost."""
        waits = np.asarray(wait_s, float)
        if self.full_s == 0:
            return np.ones(waits.shape)
        found: NDArray[np.float64] = np.clip(waits / self.full_s, 0.0, 1.0)
        return found


def fit_cold_start(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], *, least_gain: float = 4.0
) -> ColdStart:
    """From the waits before the first and the second forwards of rounds, and their seconds above the warm law.

    The mean costs are kept, slow tails included; tails do not decide how fast the cost grows. Waits beyond the recorded
    ones cost no more than these. least_gain: log-likelihood by which a cost that grows must beat one that does not.
    """
    sides = [(np.asarray(waits, float), np.asarray(excess, float)) for waits, excess in (first, second)]
    finite = np.concatenate([waits[np.isfinite(waits)] for waits, _ in sides])
    if not len(finite):
        return ColdStart(**_heights(sides, 0.0))
    found, least_loss = 0.0, _loss(sides, 0.0) - least_gain
    for full_s in np.unique(np.quantile(finite, np.linspace(0.05, 1.0, 20))).tolist():
        loss = _loss(sides, full_s)
        if loss < least_loss:
            found, least_loss = full_s, loss
    return ColdStart(**_heights(sides, found), full_s=found)


_Sides = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def _heights(sides: _Sides, full_s: float) -> dict[str, float]:
    """first_s and second_s that keep the mean of each side; never negative."""
    growth, heights = ColdStart(full_s=full_s), []
    for waits, excess in sides:
        share = float(growth.share_after(waits).sum())
        heights.append(max(0.0, float(excess.sum()) / share) if share > 0 else 0.0)
    return dict(zip(("first_s", "second_s"), heights, strict=True))


def _loss(sides: _Sides, full_s: float) -> float:
    """Half n log of the mean square that is left, of costs clipped to their middle 90%, summed over the sides."""
    growth, total = ColdStart(full_s=full_s), 0.0
    for waits, excess in sides:
        if len(excess) < 2:
            continue
        share, clipped = growth.share_after(waits), np.clip(excess, *np.quantile(excess, [0.05, 0.95]))
        height = max(0.0, float(share @ clipped) / max(float(share @ share), 1e-300))
        total += 0.5 * len(excess) * float(np.log(np.mean((clipped - height * share) ** 2) + 1e-300))
    return total

"""Acceptance by position in a round, with intervals: the numbers of the figure and of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from traces.fits.acceptance.curves import curve_of
from traces.schema import RequestTrace

NORMAL_95 = 1.96


def acceptance_by_place(traces: Sequence[RequestTrace], longest: int) -> pd.DataFrame | None:
    """Columns position (from 1), acceptance (share accepted, all before it accepted), low, high (Wilson's 95% interval, which
    holds for few rounds and for rates near 1) and confidence (mean largest probability of the draft at these tokens; not a
    number where it is unknown).

    None for traces that are too short, or on which the draft is always right or always wrong.
    """
    longest = min(longest, max((trace.num_tokens for trace in traces), default=0) - 1)
    share = np.mean([rank == 0 for trace in traces for rank in trace.ranks]) if traces else 0.0
    if longest < 1 or share in (0.0, 1.0):
        return None
    curve = curve_of(traces, longest)
    rates = np.array(curve.conditional)
    reached = curve.num_rounds * np.concatenate([[1.0], np.cumprod(rates)[:-1]])
    middle = (rates + NORMAL_95**2 / (2 * reached)) / (1 + NORMAL_95**2 / reached)
    half = NORMAL_95 * np.sqrt(rates * (1 - rates) / reached + NORMAL_95**2 / (4 * reached**2))
    half /= 1 + NORMAL_95**2 / reached
    return pd.DataFrame(
        {
            "position": range(1, len(rates) + 1),
            "acceptance": rates,
            "low": np.minimum(middle - half, rates),
            "high": np.maximum(middle + half, rates),
            "confidence": _confidence(traces, len(rates)),
        }
    )


def _confidence(traces: Sequence[RequestTrace], longest: int) -> list[float]:
    """Mean confidence at each position of rounds of a fixed length, as far as a round gets."""
    sums, counts = np.zeros(longest), np.zeros(longest)
    for trace in traces:
        start = 0
        while trace.signals and start + longest < trace.num_tokens:  # as `curve_of` counts rounds
            place = 0
            while place < longest:
                sums[place] += trace.signals[start + place].max_prob
                counts[place] += 1
                if trace.ranks[start + place]:
                    break
                place += 1
            start += place + 1
    means: list[float] = np.divide(sums, counts, out=np.full(longest, np.nan), where=counts > 0).tolist()
    return means

"""Whole rounds of a calibration, predicted beside measured: what the laws of single operations leave out shows here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from traces.fits.interference import Interference
from traces.fits.latency import LatencyFit, draw_ratios
from traces.metrics.round_time import overlapped
from traces.schema import Actor, OpKind


@dataclass(frozen=True, kw_only=True)
class RoundCheck:
    """Whole rounds: drafting, then the longer of verification and drafting ahead, then the host; mean seconds."""

    predicted_s: float
    measured_s: float
    num_rounds: int

    def __post_init__(self) -> None:
        if not (0 <= self.predicted_s < math.inf and 0 <= self.measured_s < math.inf):
            raise ValueError(f"a round takes finite seconds, but got {self.predicted_s} and {self.measured_s}.")

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else 0.0


def check_rounds(
    fits: Mapping[str, LatencyFit],
    ops: pd.DataFrame,
    rounds: pd.DataFrame,
    rng: np.random.Generator,
    slowed: NDArray[np.float64],
    waking_s: NDArray[np.float64],
    interference: Interference,
) -> RoundCheck | None:
    """Predicted and measured mean time of whole rounds; None without rounds. ops: with their group; slowed, waking_s:
    factor and further seconds of each, were nothing else at work.

    Drawn, not composed of means: the mean of the longer of two is more than the longer of two means.
    """
    if rounds.empty:
        return None
    seconds = waking_s.copy()
    for group, fit in fits.items():
        chosen = (ops["group"] == group).to_numpy()
        shapes = [ops.loc[chosen, name] for name in ("num_tokens", "num_branches", "context_tokens")]
        drawn = draw_ratios(fit.ratios, int(chosen.sum()), rng)
        seconds[chosen] += fit.mean_array(*shapes) * drawn * slowed[chosen]
    is_draft = ops["actor"] == Actor.DRAFT
    ahead = np.where(ops["kind"] == OpKind.BRANCH, "branches", "look")  # whose signals are read with it
    lanes = np.where(is_draft, np.where(ops["is_beside"], ahead, "serial"), ops["actor"])
    lanes = np.where(ops["kind"] == OpKind.PREFILL, "prefill", lanes)
    of_round = ["request_id", "round"]
    whole = ops[of_round].assign(lane=lanes, seconds=seconds)
    sums = whole.pivot_table(index=of_round, columns="lane", values="seconds", aggfunc="sum")
    sums = sums.reindex(columns=["serial", "look", "branches", "target", "host"]).fillna(0.0)
    widths = ops[ops["kind"] == OpKind.VERIFY].groupby(of_round)["num_tokens"].first().reindex(sums.index).fillna(1)
    rows = ops[ops["kind"] == OpKind.BRANCH].groupby(of_round)["num_branches"].max().reindex(sums.index).fillna(1)
    parts = [(sums["look"], *interference.paces(widths, 1)), (sums["branches"], *interference.paces(widths, rows))]
    predicted = sums["serial"] + overlapped(sums["target"], parts).whole + sums["host"]
    measured = rounds.set_index(["request_id", "round"])
    both = predicted.index.intersection(measured.index)
    if not len(both):
        return None
    times = (measured["end_s"] - measured["start_s"]).loc[both]
    return RoundCheck(
        predicted_s=float(predicted.loc[both].mean()), measured_s=float(times.mean()), num_rounds=len(both)
    )

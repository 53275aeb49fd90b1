"""Figures: each function takes data and an Axes, draws, and returns the Axes. Simulated is a line, measured is points."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by colour-blind readers; a method keeps its colour in every figure.
COLOURS = {
    "autoregressive": "#000000",
    "fixed_length": "#0072B2",
    "confidence_stop": "#56B4E9",
    "pearl": "#E69F00",
    "specbranch": "#009E73",
    "saguaro": "#CC79A7",
    "outcome_hedging": "#D55E00",
    "adaedl": "#F0E442",
}
NAMES = {
    "autoregressive": "autoregressive",
    "fixed_length": "speculative sampling",
    "confidence_stop": "confidence stop",
    "pearl": "PEARL",
    "specbranch": "SpecBranch",
    "saguaro": "SSD",
    "outcome_hedging": "outcome hedging",
    "adaedl": "AdaEDL",
}


def colour_of(method: str) -> str:
    """The colour of a method, grey for one that has none yet."""
    return COLOURS.get(method, "#999999")


def speedup_by_draft_length(axes: Axes, predicted: pd.DataFrame, measured: pd.DataFrame, methods: Sequence[str]) -> Axes:
    """Speed-up over autoregressive decoding against draft length, predicted (line, band) and measured (points, bars).

    Both frames have columns method, draft_length, speedup, low, high.
    """
    for method in methods:
        colour, name = colour_of(method), NAMES.get(method, method)
        line = predicted[predicted.method == method].sort_values("draft_length")
        axes.plot(line.draft_length, line.speedup, color=colour, label=f"{name}, predicted")
        axes.fill_between(line.draft_length, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        points = measured[measured.method == method].sort_values("draft_length")
        if not points.empty:
            bars = [points.speedup - points.low, points.high - points.speedup]
            axes.errorbar(
                points.draft_length, points.speedup, yerr=bars, fmt="o", color=colour, capsize=3, label=f"{name}, measured"
            )
    axes.axhline(1.0, color=colour_of("autoregressive"), linewidth=0.8, linestyle=":")
    axes.set_xlabel("draft length (tokens)")
    axes.set_ylabel("speed-up over autoregressive")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return axes

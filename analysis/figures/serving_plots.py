"""Figures of a plan: goodput against rate, the break-even map of batch and context, draft length by load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.figures.saving import save_figure
from analysis.plan.planning import PlanResult
from sim.serving.rounds.base import ServerLoad
from sim.serving.rounds.length_rules import GoodputRule

# Okabe and Ito's, as in `analysis.figures.plots`: plain decoding is black, speculation blue, by load orange.
_COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_LENGTH_COLOURS = ("#f0f0f0", "#cfe1f2", "#93c4df", "#4b98ca", "#1764ab", "#083a7a", "#052355")
_BATCHES = tuple(round(2 ** (step / 2)) for step in range(2 * 9 + 1))
_CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def goodput_by_rate(axes: Axes, plan: PlanResult) -> Axes:
    """Requests a second that meet every objective, against the rate; hollow where the queue never settles."""
    names = [each.method.name for each in plan.finalists]
    for name, colour in zip(names, _COLOURS, strict=False):
        points = sorted((rate, goodput, settled) for method, rate, goodput, settled in plan.curves if method == name)
        rates, goodputs = [point[0] for point in points], [point[1] for point in points]
        axes.plot(rates, goodputs, color=colour, label=name, marker="o", markersize=4)
        unsettled = [(rate, goodput) for rate, goodput, settled in points if not settled]
        if unsettled:
            axes.plot(
                *zip(*unsettled, strict=True), linestyle="", marker="o", markersize=4, color=colour, markerfacecolor="w"
            )
    top = max(rate for _, rate, _, _ in plan.curves)
    axes.plot([0, top], [0, top], color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("rate (requests/s, one replica)")
    axes.set_ylabel(f"goodput (requests/s with {plan.settings.objectives.label()})")
    axes.set_title("How much traffic one replica holds\n(hollow: its queue never settles)", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return axes


def break_even_map(axes: Axes, plan: PlanResult) -> Axes:
    """Goodput of the best draft length over that of plain decoding, by batch and context; the line is break-even."""
    rule = GoodputRule(plan.machine.costs, plan.acceptance.marginal(max(plan.settings.max_length, 1)))
    gains = np.array(
        [
            [
                max(rule.gain(ServerLoad.alike(batch, context), length) for length in range(1, rule.max_length + 1))
                for batch in _BATCHES
            ]
            for context in _CONTEXTS
        ]
    )
    levels = np.array([0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0])
    filled = axes.contourf(_BATCHES, _CONTEXTS, gains, levels=levels, cmap="RdBu", norm=_centred(), extend="both")
    if gains.min() < 1 < gains.max():
        axes.contour(_BATCHES, _CONTEXTS, gains, levels=[1.0], colors="k", linewidths=1.5)
    axes.figure.colorbar(filled, ax=axes, label="speed-up of a token over plain decoding", ticks=levels)
    reach = plan.machine.kv_tokens_with_draft / np.array(_BATCHES)
    axes.plot(_BATCHES, reach, color="k", linestyle="--", linewidth=1, label="memory is full above")
    _loads(axes)
    axes.set_yscale("log", base=2)
    axes.set_ylim(_CONTEXTS[0], _CONTEXTS[-1])
    axes.set_yticks(_CONTEXTS, [str(context) for context in _CONTEXTS])
    axes.set_ylabel("context of each request (tokens)")
    axes.set_title(f"Where speculation pays, K up to {plan.settings.max_length}, {plan.machine.name}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return axes


def lengths_by_load(axes: Axes, plan: PlanResult) -> Axes:
    """Speed-up of every draft length by the running requests, at the traffic's mean context; the table in a band below."""
    marginal = plan.acceptance.marginal(max(plan.settings.max_length, 1))
    rule = GoodputRule(plan.machine.costs, marginal, joining=plan.joining)
    colours = [matplotlib.colormaps["viridis"](share) for share in np.linspace(0.85, 0.1, rule.max_length)]
    for length, colour in zip(range(1, rule.max_length + 1), colours, strict=True):
        gains = [rule.gain(ServerLoad.alike(batch, plan.mean_context), length) for batch in _BATCHES]
        axes.plot(_BATCHES, gains, color=colour, label=f"K = {length}")
    axes.axhline(1.0, color="k", linewidth=0.8)
    bottom, top = axes.get_ylim()
    low = bottom - 0.1 * (top - bottom)
    for band in plan.table.bands:
        last = min(band.last or _BATCHES[-1], _BATCHES[-1])
        axes.fill_between(
            [band.first, last + 1], low, bottom, color=_LENGTH_COLOURS[min(band.draft_length, 6)], linewidth=0
        )
        if last >= 1.6 * band.first:
            axes.text(
                (band.first * (last + 1)) ** 0.5, (low + bottom) / 2, f"K = {band.draft_length}", ha="center", va="center",
                fontsize=8, color="w" if band.draft_length > 3 else "k",
            )  # fmt: skip
    axes.set_ylim(low, top)
    _loads(axes)
    axes.set_ylabel("speed-up of a token over plain decoding")
    axes.set_title(f"Draft length by load, at a context of {plan.mean_context:.0f} tokens", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _centred() -> matplotlib.colors.Normalize:
    return matplotlib.colors.TwoSlopeNorm(1.0, 0.5, 3.0)


def _loads(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(_BATCHES[0], _BATCHES[-1])
    axes.set_xticks([2**power for power in range(10)], [str(2**power) for power in range(10)])
    axes.set_xlabel("running requests of a replica")


FIGURES: dict[str, Callable[[Axes, PlanResult], Axes]] = {
    "goodput_by_rate": goodput_by_rate,
    "break_even": break_even_map,
    "lengths_by_load": lengths_by_load,
}


def draw_plan(plan: PlanResult, output_dir: Path) -> list[Path]:
    """All figures of a plan; gives their paths."""
    paths = []
    for name, draw in FIGURES.items():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots(), plan)
        path = output_dir / f"{name}.png"
        save_figure(figure, path)
        paths.append(path)
    return paths

"""Figures: each function takes data and an Axes, draws, and returns the Axes. Simulated is a line, measured is
points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which colour-blind readers can tell apart; a method keeps its colour in every figure.
COLOURS = {
    "autoregressive": "#000000",
    "fixed_length": "#0072B2",
    "confidence_stop": "#56B4E9",
    "pearl": "#E69F00",
    "specbranch": "#009E73",
    "saguaro": "#CC79A7",
    "outcome_hedging": "#D55E00",
    "adaedl": "#F0E442",
    "product_rule": "#882255",
    "prompt_lookup": "#44AA99",
    "dsi": "#117733",
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
    "product_rule": "product rule",
    "prompt_lookup": "prompt lookup",
    "dsi": "DSI",
}

MAP_LEVELS = (1.25, 1.5, 2, 3, 4, 6)  # of the lines of equal speed-up
RATIO_TICKS = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 100)  # of cost ratios, on a logarithmic axis
MODEL_COLOURS = ("fixed_length", "pearl", "specbranch", "outcome_hedging", "saguaro")  # of lines that are no methods


def colour_of(method: str) -> str:
    """The colour of a method, grey for one that has none yet."""
    return COLOURS.get(method, "#999999")


def speedup_by_draft_length(
    axes: Axes, predicted: pd.DataFrame, measured: pd.DataFrame, methods: Sequence[str]
) -> Axes:
    """Speed-up over autoregressive decoding against draft length, predicted (line, band) and measured (points, bars).

    Both frames have columns method, draft_length, speedup, low, high.
    """
    for method in methods:
        colour, name = colour_of(method), NAMES.get(method, method)
        line = predicted[predicted.method == method].sort_values("draft_length")
        axes.plot(line.draft_length, line.speedup, color=colour, marker=".", markersize=4, label=f"{name}, predicted")
        axes.fill_between(line.draft_length, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        points = measured[measured.method == method].sort_values("draft_length")
        if not points.empty:
            bars = [points.speedup - points.low, points.high - points.speedup]
            axes.errorbar(
                points.draft_length,
                points.speedup,
                yerr=bars,
                fmt="o",
                color=colour,
                capsize=3,
                label=f"{name}, measured",
            )
    axes.axhline(1.0, color=colour_of("autoregressive"), linewidth=0.8, linestyle=":")
    axes.set_xlabel("draft length (tokens)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("speed-up over autoregressive")
    axes.grid(alpha=0.25)
    return _from_zero(axes)


def closed_form_line(axes: Axes, table: pd.DataFrame, method: str) -> Axes:
    """The closed form beside simulation and measurement: dashed. Columns draft_length, speedup."""
    line = table.sort_values("draft_length")
    name = NAMES.get(method, method)
    axes.plot(line.draft_length, line.speedup, color=colour_of(method), linestyle="--", label=f"{name}, closed form")
    return _from_zero(axes)


def bound_line(
    axes: Axes, table: pd.DataFrame, label: str, *, column: str = "speedup", colour: str = "#555555"
) -> Axes:
    """An oracle or the entropy bound: what nothing of its kind can beat. Columns draft_length and `column`."""
    line = table.sort_values("draft_length")
    axes.plot(line.draft_length, line[column], color=colour, linestyle=":", linewidth=1.8, label=label)
    return _from_zero(axes)


def _from_zero(axes: Axes) -> Axes:
    """Room for all lines, the axis of speed-ups from 0; the legend names them all."""
    axes.set_ylim(auto=True)
    axes.autoscale_view(scalex=False)
    axes.set_ylim(bottom=0)
    num_columns = 2 if len(axes.get_legend_handles_labels()[0]) <= 6 else 3
    axes.legend(fontsize=7, ncols=num_columns, loc="upper center", bbox_to_anchor=(0.5, -0.14))  # lines are everywhere
    return axes


def branches_by_draft_length(axes: Axes, table: pd.DataFrame) -> Axes:
    """Speed-up over draft length and branch count as a heat map; the best cell is marked.

    Columns draft_length, max_branches, speedup; of several rows for one cell (thresholds) the fastest counts.
    """
    cells = table.pivot_table(index="max_branches", columns="draft_length", values="speedup", aggfunc="max")
    image = axes.imshow(cells.to_numpy(), origin="lower", aspect="auto", cmap="cividis")
    axes.set_xticks(range(cells.shape[1]), [f"{value:g}" for value in cells.columns.to_numpy(float)])
    axes.set_yticks(range(cells.shape[0]), [f"{value:g}" for value in cells.index.to_numpy(float)])
    row, column = divmod(int(np.nanargmax(cells.to_numpy(float))), cells.shape[1])  # a study may leave cells out
    axes.plot(column, row, marker="*", color="#D55E00", markersize=14, markeredgecolor="white")
    axes.annotate(
        f"{cells.to_numpy(float)[row, column]:.2f}",
        (column, row),
        xytext=(0, 12),
        textcoords="offset points",
        horizontalalignment="center",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )
    axes.set_xlabel("draft length (tokens)")
    axes.set_ylabel("branches (at most)")
    axes.figure.colorbar(image, ax=axes, label="speed-up over autoregressive")
    return axes


def break_even_map(axes: Axes, won: pd.DataFrame) -> Axes:
    """Which method wins over cost ratio and acceptance, with lines of equal speed-up; of `analysis.papers.maps.winners`."""
    present = set(won.method)
    methods = [*(method for method in COLOURS if method in present), *sorted(present - set(COLOURS))]
    codes = won.assign(code=won.method.map({method: index for index, method in enumerate(methods)}))
    cells = codes.pivot(index="alpha", columns="cost_ratio", values="code")
    speedups = won.pivot(index="alpha", columns="cost_ratio", values="speedup")
    ratios, alphas = cells.columns.to_numpy(float), cells.index.to_numpy(float)
    palette = ListedColormap([colour_of(method) for method in methods])
    axes.pcolormesh(
        ratios,
        alphas,
        cells.to_numpy(),
        cmap=palette,
        vmin=-0.5,
        vmax=len(methods) - 0.5,
        alpha=0.75,
        shading="nearest",
    )
    values = speedups.to_numpy(float)
    levels = [level for level in MAP_LEVELS if values.min() < level < values.max()]
    if levels and min(values.shape) > 1:
        lines = axes.contour(ratios, alphas, values, levels=levels, colors="black", linewidths=0.8)
        axes.clabel(lines, fmt="%gx", fontsize=8)
    axes.legend(
        handles=[Patch(color=colour_of(method), alpha=0.75, label=NAMES.get(method, method)) for method in methods],
        fontsize=8,
        loc="lower right",
    )
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = [tick for tick in RATIO_TICKS if ratios[0] <= tick <= ratios[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("cost ratio (target forward / draft forward)")
    axes.set_ylabel("acceptance")
    return axes


def star_of_pair(axes: Axes, cost_ratio: float, acceptance: float, fastest: str, speedups: Mapping[str, float]) -> Axes:
    """Where a pair stands on a break-even map. fastest: the method whose colour the star has. speedups: of methods, written
    beside it, fastest first.
    """
    axes.plot(
        cost_ratio,
        acceptance,
        marker="*",
        color=colour_of(fastest),
        markeredgecolor="white",
        markeredgewidth=1.5,
        markersize=18,
    )
    text = "\n".join(f"{NAMES.get(method, method)} {speedup:.2f}" for method, speedup in speedups.items())
    low, high = axes.get_xlim()
    is_right = cost_ratio**2 > low * high  # the axis is logarithmic: text goes to the side with more room
    axes.annotate(
        text,
        (cost_ratio, acceptance),
        xytext=(-14 if is_right else 14, 0),
        textcoords="offset points",
        horizontalalignment="right" if is_right else "left",
        verticalalignment="center",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
    )
    return axes


def bound_contours(axes: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Lines of equal speed-up of an oracle over a break-even map, dotted: the same levels as the map's own lines, which
    no method can reach before them. Columns alpha, cost_ratio, speedup."""
    cells = table.pivot_table(index="alpha", columns="cost_ratio", values="speedup")
    values = cells.to_numpy(float)
    levels = [level for level in MAP_LEVELS if values.min() < level < values.max()]
    if levels and min(values.shape) > 1:
        ratios, alphas = cells.columns.to_numpy(float), cells.index.to_numpy(float)
        axes.contour(ratios, alphas, values, levels=levels, colors="black", linewidths=1.1, linestyles="dotted")
        axes.plot([], [], color="black", linestyle=":", label=label)
        handles = [*_legend_patches(axes), *axes.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, fontsize=8, loc="lower right")
    return axes


def _legend_patches(axes: Axes) -> list[Patch]:
    legend = axes.get_legend()
    return [] if legend is None else [handle for handle in legend.legend_handles if isinstance(handle, Patch)]


def acceptance_by_position(
    axes: Axes, measured: pd.DataFrame, predicted: Mapping[str, Sequence[float]], *, label: str = "measured"
) -> Axes:
    """Acceptance of each position of a round, all before it accepted, and what departs from the i.i.d. line.

    measured: columns position (from 1), acceptance, low, high: points, with a label. predicted: name -> acceptance by
    position: lines.
    """
    axes.axhline(
        measured.acceptance.iloc[0], color=colour_of("autoregressive"), linestyle="--", label="i.i.d. from position 1"
    )
    for (name, values), colour in zip(predicted.items(), cycle(MODEL_COLOURS), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[colour], label=name)
    bars = [measured.acceptance - measured.low, measured.high - measured.acceptance]
    axes.errorbar(measured.position, measured.acceptance, yerr=bars, fmt="o", color="#444444", capsize=3, label=label)
    axes.set_xlabel("position in the round")
    axes.set_ylabel("acceptance, all before it accepted")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return axes


def pareto_front_plot(axes: Axes, table: pd.DataFrame, x: str, y: str = "tokens_per_s") -> Axes:
    """All policies, those on the Pareto front marked. Columns method, is_pareto, x and y."""
    for method, rows in table.groupby("method", sort=False):
        colour, name = colour_of(str(method)), NAMES.get(str(method), str(method))
        axes.scatter(rows[x], rows[y], s=8, alpha=0.35, color=colour, label=name)
    front = table[table.is_pareto].sort_values(x)
    axes.scatter(front[x], front[y], s=30, facecolors="none", edgecolors="black", linewidths=0.9, label="Pareto front")
    axes.set_xlabel(x.removeprefix("objective_").replace("_", " "))
    axes.set_ylabel(y.replace("tokens_per_s", "speed (tokens/s)"))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return axes

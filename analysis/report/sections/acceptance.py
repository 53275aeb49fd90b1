"""Acceptance and the draft's confidence: by position in a round, and how well the one tells the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.figures.acceptance import acceptance_by_place
from analysis.report.charts import GREY, Figure, error_bars, layout
from analysis.report.elements import Chart, Element, Section
from analysis.report.material import Arm
from traces.schema import RequestTrace, num_tokens

LONGEST = 8
NUM_BINS = 10
MIN_IN_BIN = 10
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of temperatures


def acceptance_section(arm: Arm) -> Section | None:
    """At each temperature: how often a draft token is accepted, all before it accepted; and at which confidence."""
    by_temperature = {
        temperature: [trace for trace in arm.traces if trace.temperature == temperature]
        for temperature in arm.temperatures
    }
    elements: list[Element] = []
    rates: Figure = {"data": [], "layout": _layout("position in the draft", "chance of acceptance", dtick=1)}
    curves: Figure = {
        "data": [],
        "layout": _layout("confidence of the draft (largest probability)", "share accepted", dtick=0.2),
    }
    curves["layout"]["xaxis"]["range"] = [0, 1.02]
    for shade, (temperature, traces) in zip(SHADES, by_temperature.items(), strict=False):
        rates["data"] += _by_position(traces, temperature, shade)
        curves["data"] += _by_confidence(traces, temperature, shade)
    if rates["data"]:
        elements.append(
            Chart(
                name="acceptance",
                title="Is acceptance the same at every position?",
                figure=rates,
                height=340,
                note="Dots: share accepted among the tokens whose predecessors were accepted, with 95% intervals (Wilson). "
                "Dotted: the draft's mean confidence at the same tokens.",
            )
        )
    if curves["data"]:
        curves["layout"]["shapes"] = [
            {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1, "dash": "dot"}}
        ]
        elements.append(
            Chart(
                name="confidence",
                title="Does the draft know when it is right?",
                figure=curves,
                height=340,
                note="Draft tokens in tenths by confidence. A draft that knows stands on the dotted line.",
            )
        )
    if not elements:
        return None
    mean = {
        temperature: float(np.mean([rank == 0 for trace in traces for rank in trace.ranks]))
        for temperature, traces in by_temperature.items()
    }
    told = "; ".join(f"{share:.0%} at T = {temperature:g}" for temperature, share in mean.items())
    lead = f"The draft proposes the target's token at {told} of {num_tokens(arm.traces)} recorded positions."
    return Section(name="acceptance", title="Acceptance and confidence", lead=lead, elements=elements)


def _layout(x_title: str, y_title: str, *, dtick: float) -> Figure:
    return layout(x_title, y_title, x={"dtick": dtick}, y={"range": [0, 1.02]})


def _by_position(traces: Sequence[RequestTrace], temperature: float, shade: str) -> list[Figure]:
    table = acceptance_by_place(traces, LONGEST)
    if table is None:
        return []
    label = f"T = {temperature:g}"
    intervals = list(zip(table.low, table.high, strict=True))
    drawn: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label,
            "x": table.position.tolist(),
            "y": table.acceptance.tolist(),
            "error_y": error_bars(table.acceptance.tolist(), intervals) | {"color": shade},
            "marker": {"color": shade, "size": 8},
            "line": {"color": shade, "width": 1.5},
            "hovertemplate": f"{label}, position %{{x}}: %{{y:.1%}}<extra></extra>",
        }
    ]
    if table.confidence.notna().any():
        drawn.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{label}, confidence",
                "x": table.position.tolist(),
                "y": table.confidence.tolist(),
                "line": {"color": shade, "width": 1.5, "dash": "dot"},
                "hovertemplate": f"{label}, mean confidence at position %{{x}}: %{{y:.2f}}<extra></extra>",
            }
        )
    return drawn


def _by_confidence(traces: Sequence[RequestTrace], temperature: float, shade: str) -> list[Figure]:
    pairs = [
        (signal.max_prob, rank == 0)
        for trace in traces
        for signal, rank in zip(trace.signals, trace.ranks, strict=False)
        if np.isfinite(signal.max_prob)
    ]
    if len(pairs) < 2 * MIN_IN_BIN:
        return []
    confidence, accepted = np.array(pairs, float).T
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(NUM_BINS, len(pairs) // MIN_IN_BIN))
    label = f"T = {temperature:g}"
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label,
            "x": [float(confidence[part].mean()) for part in parts],
            "y": [float(accepted[part].mean()) for part in parts],
            "marker": {"color": shade, "size": 8},
            "line": {"color": shade, "width": 1.5},
            "hovertemplate": f"{label}, confidence %{{x:.2f}}: %{{y:.1%}} accepted<extra></extra>",
        }
    ]

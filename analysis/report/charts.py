"""Plotly figures as plain values: colours of methods and of work, and what all figures share.

Text, axes and grids take their colours from the page, light or dark; the colours here pass on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.plots import NAMES, colour_of
from analysis.report.elements import in_chart
from analysis.verdict import method_of

Figure = dict[str, Any]
GREY = "#8a8f98"
# Okabe and Ito's palette again, for what a device does.
WORK_COLOURS = {
    "verify": "#0072B2",
    "draft, accepted": "#009E73",
    "draft, rolled back": "#D55E00",
    "branches, hit": "#56B4E9",
    "branches, missed": "#E69F00",
    "prompt": "#CC79A7",
    "host": GREY,
    "waiting": "#c9cdd3",
}


def method_name(policy: str) -> str:
    """The method of a label, for people."""
    method = method_of(policy)
    return in_chart(NAMES.get(method, method))


def colour(policy: str) -> str:
    """A method's colour, that of every figure; plain decoding's black becomes a grey that is seen on black as well."""
    chosen = colour_of(method_of(policy))
    return GREY if chosen == "#000000" else chosen


def layout(
    x_title: str, y_title: str, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None, **more: Any
) -> Figure:
    """What all figures share. x, y: more of each axis."""
    axis = {"automargin": True, "zeroline": False, "ticks": "", "title": {"standoff": 8}}
    return {
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8, "pad": 4},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemsizing": "constant",
            "traceorder": "normal",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        "hovermode": "closest",
        "dragmode": False,
        "barcornerradius": 2,
        "xaxis": axis | {"title": {"text": x_title, "standoff": 8}, "fixedrange": True} | dict(x or {}),
        "yaxis": axis | {"title": {"text": y_title, "standoff": 8}, "fixedrange": True} | dict(y or {}),
        **more,
    }


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> Figure:
    """Of points: their 95% intervals."""
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.4,
        "width": 4,
    }


def line_at(value: float, *, axis: str = "y") -> Figure:
    """A dotted line across a figure, as a shape: the speed of plain decoding, for instance."""
    place = {"y0": value, "y1": value, "x0": 0, "x1": 1, "xref": "paper"}
    if axis == "x":
        place = {"x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": {"color": GREY, "width": 1, "dash": "dot"}, **place}

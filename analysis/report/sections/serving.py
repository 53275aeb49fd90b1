"""A plan: what a replica holds under each method, and goodput by rate."""

from __future__ import annotations

import math

from analysis.report.charts import GREY, Figure, error_bars, layout
from analysis.report.elements import Chart, Element, Section, Table, Text, in_chart
from analysis.report.material import Arm, Plan

SHADES = (GREY, "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255")
MAX_CURVES = 8


def serving_section(arm: Arm) -> Section | None:
    """Capacity, and the full table."""
    elements: list[Element] = []
    for number, plan in enumerate(arm.plans):
        if arm.runs:  # otherwise these are the verdict
            elements += [Text(text=str(line)) for line in plan.summary.get("verdict", ())]
        elements += [_capacity(plan, number), *_goodput(plan, number), _table(plan)]
    if not elements:
        return None
    lead = "Simulated serving: what one replica holds within the objectives, and what the whole traffic takes."
    return Section(name="serving", title="Serving plan", lead=lead, elements=elements)


def _capacity(plan: Plan, number: int) -> Chart:
    rows = plan.methods.dropna(subset=["requests_per_s_low"]).sort_values("requests_per_s_per_replica", ascending=False)
    names = [in_chart(str(name)) for name in rows.method]
    values = rows.requests_per_s_per_replica.tolist()
    intervals = list(zip(rows.requests_per_s_low, rows.requests_per_s_high, strict=True))
    figure: Figure = {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": values,
                "error_x": error_bars(values, intervals) | {"color": SHADES[0]},
                "marker": {"color": SHADES[1]},
                "hovertemplate": "%{y}: %{x:.3g} requests/s<extra></extra>",
            }
        ],
        "layout": layout(
            "requests a second that a replica holds",
            "",
            y={"autorange": "reversed", "type": "category"},
            showlegend=False,
        ),
    }
    return Chart(
        name=f"capacity-{number}",
        title="How much traffic a replica holds",
        figure=figure,
        height=100 + 32 * len(rows),
        note="With 95% intervals over replications. Methods that were not planned to the end stand in the table only.",
    )


def _goodput(plan: Plan, number: int) -> list[Chart]:
    methods = list(dict.fromkeys(plan.curves.method))[:MAX_CURVES]
    if not methods:
        return []
    data = []
    for shade, method in zip(SHADES, methods, strict=False):
        rows = plan.curves[plan.curves.method == method].sort_values("requests_per_s")
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": in_chart(str(method)),
                "x": rows.requests_per_s.tolist(),
                "y": rows.goodput_per_s.tolist(),
                "line": {"color": shade, "width": 2},
                "marker": {"color": shade, "size": 5},
                "hovertemplate": "%{x:.3g} asked, %{y:.3g} good<extra></extra>",
            }
        )
    figure = {"data": data, "layout": layout("requests a second asked of a replica", "good requests a second")}
    return [Chart(name=f"goodput-{number}", title="Goodput of one replica", figure=figure, height=340)]


def _table(plan: Plan) -> Table:
    columns = {
        "method": "method",
        "requests_per_s_per_replica": "requests/s a replica",
        "num_replicas": "replicas",
        "num_devices": "devices",
        "attainment": "attainment",
        "p50_ttft_s": "TTFT p50, s",
        "p99_ttft_s": "TTFT p99, s",
        "p50_tpot_s": "TPOT p50, s",
        "p99_tpot_s": "TPOT p99, s",
        "acceptance_length": "tokens/round",
        "cost_per_million_tokens": "$/M tokens",
    }
    known = {name: title for name, title in columns.items() if name in plan.methods.columns}
    rows = [[_cell(row[name]) for name in known] for row in plan.methods.to_dict("records")]
    return Table(columns=list(known.values()), rows=rows, is_folded=True, title="Full table of the plan")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)

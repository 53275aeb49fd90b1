"""Two runs side by side: each policy that both ran, speeds and their ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.report.answers import verdicts_on
from analysis.report.charts import Figure, error_bars, layout
from analysis.report.elements import Chart, Element, Section, Table, Text, in_chart, with_interval
from analysis.report.material import Arm
from analysis.verdict import PROBE, method_of, name_of
from traces.metrics.speeds import Speed

SHADES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def comparison_section(arms: Sequence[Arm]) -> Section | None:
    """Every other arm against the first; None for one arm."""
    measured = [arm for arm in arms if arm.speeds]
    if len(measured) < 2:
        return None
    elements: list[Element] = []
    first = measured[0]
    for other in measured[1:]:
        pairs = _pairs(first, other)
        if not pairs:
            elements.append(Text(text=f"{first.name} and {other.name} ran no policy at a temperature that both have."))
            continue
        elements += [_chart(first, other, pairs, len(elements)), _table(first, other, pairs)]
    elements += [Text(text=f"{arm.name}: {each.lines()[0]}") for arm in measured for each in verdicts_on(arm, {})]
    told = " and ".join(arm.name for arm in measured[1:])
    lead = f"{first.name} against {told}, policy by policy, each at its machine's median speed."
    return Section(name="comparison", title="The runs compared", lead=lead, elements=elements)


def _pairs(first: Arm, other: Arm) -> list[tuple[Speed, Speed]]:
    known = {(speed.policy, speed.temperature): speed for speed in other.speeds}
    return [
        (speed, known[speed.policy, speed.temperature])
        for speed in first.speeds
        if (speed.policy, speed.temperature) in known and method_of(speed.policy) != PROBE
    ]


def ratio_of(first: Speed, other: Speed) -> tuple[float, tuple[float, float]]:
    """Speed of the other run over the first's, with a 95% interval: the half-widths of both, in logarithms, add up as errors
    of independent runs do."""
    ratio = other.tokens_per_s / first.tokens_per_s
    low = math.hypot(math.log(other.interval[0] / other.tokens_per_s), math.log(first.interval[1] / first.tokens_per_s))
    high = math.hypot(
        math.log(other.interval[1] / other.tokens_per_s), math.log(first.interval[0] / first.tokens_per_s)
    )
    return ratio, (ratio * math.exp(-low), ratio * math.exp(high))


def _chart(first: Arm, other: Arm, pairs: Sequence[tuple[Speed, Speed]], number: int) -> Chart:
    names = [in_chart(f"{name_of(mine.policy)}, T = {mine.temperature:g}") for mine, _ in pairs]
    data: list[Figure] = []
    for arm, column, shade in ((first, 0, SHADES[0]), (other, 1, SHADES[1])):
        speeds = [pair[column] for pair in pairs]
        values = [speed.tokens_per_s for speed in speeds]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "orientation": "h",
                "name": in_chart(arm.name),
                "y": names,
                "x": values,
                "error_x": error_bars(values, [speed.interval for speed in speeds]) | {"color": shade},
                "marker": {"size": 9, "color": shade},
                "hovertemplate": "%{y}<br>%{x:.1f} tokens/s<extra></extra>",
            }
        )
    return Chart(
        name=f"comparison-{number}",
        title=f"Tokens a second: {first.name} and {other.name}",
        figure={
            "data": data,
            "layout": layout(
                "tokens a second, adjusted",
                "",
                x={"rangemode": "tozero"},
                y={"autorange": "reversed", "type": "category", "showgrid": False},
                scattermode="group",
                scattergap=0.4,
            ),
        },
        height=110 + 36 * len(pairs),
        note="With 95% intervals over prompts.",
    )


def _table(first: Arm, other: Arm, pairs: Sequence[tuple[Speed, Speed]]) -> Table:
    rows = []
    for mine, its in pairs:
        ratio, interval = ratio_of(mine, its)
        rows.append(
            [
                name_of(mine.policy),
                f"{mine.temperature:g}",
                with_interval(mine.tokens_per_s, mine.interval, 1),
                with_interval(its.tokens_per_s, its.interval, 1),
                with_interval(ratio, interval),
                with_interval(mine.speedup, mine.speedup_interval),
                with_interval(its.speedup, its.speedup_interval),
            ]
        )
    columns = (
        "policy",
        "T",
        f"{first.name}, tokens/s",
        f"{other.name}, tokens/s",
        "ratio [95%]",
        f"{first.name}, speed-up",
        f"{other.name}, speed-up",
    )
    note = "Ratio: the second run's speed over the first's, as of independent runs; an interval around 1 shows no difference."
    return Table(columns=columns, rows=rows, note=note)

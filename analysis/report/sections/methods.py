"""Methods side by side: speed-ups with intervals, predicted against measured, and the full table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.check.comparison import ComparedPolicy
from analysis.check.validation import Validation
from analysis.cli.tables import validation_lines
from analysis.report.charts import GREY, Figure, colour, error_bars, layout, line_at, method_name
from analysis.report.elements import Chart, Element, Section, Table, Text, in_chart, with_interval
from analysis.report.material import Arm
from analysis.verdict import PROBE, method_of, name_of

MAX_ROWS = 500  # of an exploration's table
MAX_BARS = 16  # of a chart; all are in the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method in the chart. predicted: of a speed-up that was measured."""

    policy: str
    speedup: float
    interval: tuple[float, float] | None
    predicted: float | None = None
    predicted_interval: tuple[float, float] | None = None


def methods_section(arm: Arm) -> Section | None:
    """Speed-ups of all methods, a chart for each temperature or scenario."""
    by_place, kind = _rows_of(arm)
    elements: list[Element] = []
    for place, rows in by_place.items():
        best_first = sorted(rows, key=lambda row: -row.speedup)[:MAX_BARS]
        if best_first:
            elements.append(
                Chart(
                    name=f"methods-{len(elements)}",
                    title=f"{place}: speed-up over plain decoding",
                    figure=_bars(best_first),
                    height=90 + 30 * len(best_first),
                    note=f"Dots are {kind}, with 95% intervals over prompts"
                    + (
                        "; diamonds are what the simulator predicted beforehand."
                        if any(row.predicted for row in rows)
                        else "."
                    ),
                )
            )
    if not elements:
        return None
    elements += _tables(arm)
    return Section(
        name="methods",
        title="Methods side by side",
        lead="Every method decodes the same tokens; only the time differs.",
        elements=elements,
    )


def _rows_of(arm: Arm) -> tuple[dict[str, list[Row]], str]:
    """By temperature or scenario; and whether they were measured or predicted."""
    places: dict[str, list[Row]] = {}
    if arm.comparison:
        for row in arm.comparison:
            if row.speedup_over_autoregressive is not None:
                one = Row(policy=row.policy, speedup=row.speedup_over_autoregressive, interval=row.speedup_interval)
                places.setdefault(f"T = {row.temperature:g}", []).append(one)
        return places, "measured"
    if arm.validation:
        for check in arm.validation.policies:
            if check.speedup is not None:
                places.setdefault(f"T = {check.temperature:g}", []).append(
                    Row(
                        policy=check.policy,
                        speedup=check.speedup,
                        interval=check.best_speedup_interval,
                        predicted=None if check.policy == "autoregressive" else check.predicted_speedup,
                        predicted_interval=check.predicted_speedup_interval,
                    )
                )
        return places, "measured"
    speeds = [each for each in arm.speeds if each.speedup is not None and method_of(each.policy) != PROBE]
    if len({speed.policy for speed in speeds}) > 1:
        for speed in speeds:
            assert speed.speedup is not None
            one = Row(policy=speed.policy, speedup=speed.speedup, interval=speed.speedup_interval)
            places.setdefault(f"T = {speed.temperature:g}", []).append(one)
        return places, "measured"
    if arm.explored:
        for scenario, rows in arm.explored.table.groupby("scenario", sort=False):
            places[str(scenario)] = [
                Row(
                    policy=str(row["policy"]),
                    speedup=float(row["speedup"]),
                    interval=(float(row["speedup_low"]), float(row["speedup_high"])),
                )
                for row in rows.sort_values("speedup", ascending=False).head(MAX_BARS).to_dict("records")
            ]
        return places, "predicted"
    for run in arm.simulated:
        for speed in run.summary.get("predicted", ()):
            if speed.get("speedup") is not None:
                interval = speed.get("speedup_interval")
                one = Row(
                    policy=str(speed["policy"]),
                    speedup=float(speed["speedup"]),
                    interval=tuple(interval) if interval else None,
                )
                places.setdefault(f"T = {speed['temperature']:g}", []).append(one)
    return places, "predicted"


def _bars(rows: Sequence[Row]) -> Figure:
    """Dots with intervals, one line a method, the fastest on top."""
    names = [in_chart(name_of(row.policy)) for row in rows]
    values = [row.speedup for row in rows]
    colours = [colour(row.policy) for row in rows]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "",
            "showlegend": False,
            "x": [value],
            "y": [name],
            "marker": {"size": 10, "color": shade},
            "error_x": error_bars([value], [row.interval]) | {"color": shade},
            "hovertemplate": f"{name}<br>{with_interval(value, row.interval)}<extra></extra>",
        }
        for row, name, value, shade in zip(rows, names, values, colours, strict=True)
    ]
    predicted = [(name, row.predicted) for name, row in zip(names, rows, strict=True) if row.predicted]
    if predicted:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "predicted",
                "showlegend": False,
                "x": [value for _, value in predicted],
                "y": [name for name, _ in predicted],
                "marker": {"symbol": "diamond-open", "size": 11, "color": GREY, "line": {"width": 1.6}},
                "hovertemplate": "%{y}<br>predicted %{x:.2f}<extra></extra>",
            }
        )
    return {
        "data": traces,
        "layout": layout(
            "speed-up over plain decoding",
            "",
            x={"rangemode": "tozero"},
            y={"autorange": "reversed", "type": "category", "showgrid": False},
            shapes=[line_at(1.0, axis="x")],
        ),
    }


def _tables(arm: Arm) -> list[Element]:
    """The numbers of the commands, all of them, folded."""
    if arm.comparison:
        return [_comparison_table(arm.comparison)]
    if arm.validation:
        return [_validation_table(arm.validation)]
    if arm.speeds:
        rows = [
            [
                name_of(each.policy),
                f"{each.temperature:g}",
                f"{raw.tokens_per_s:.1f}",
                with_interval(each.tokens_per_s, each.interval, 1),
                with_interval(each.speedup, each.speedup_interval),
                f"{each.tokens_per_target_forward:.2f}",
                str(each.num_prompts),
            ]
            for each, raw in zip(arm.speeds, arm.raw_speeds, strict=True)
        ]
        columns = ("policy", "T", "tokens/s", "adjusted [95%]", "speed-up [95%]", "tokens/forward", "prompts")
        note = (
            "Adjusted: at the machine's median speed. Tokens/forward: mean acceptance length, the added token included."
        )
        return [Table(columns=columns, rows=rows, note=note, is_folded=True, title="Full table")]
    if arm.explored:
        table = arm.explored.table.sort_values(["scenario", "tokens_per_s"], ascending=[True, False])
        rows = [
            [
                name_of(str(row["policy"])),
                str(row["scenario"]),
                f"{row['tokens_per_s']:.1f}",
                with_interval(row["speedup"], (row["speedup_low"], row["speedup_high"])),
                f"{row['tokens_per_target_forward']:.2f}",
            ]
            for row in table.head(MAX_ROWS).to_dict("records")
        ]
        more = (
            "" if len(table) <= MAX_ROWS else f" The first {MAX_ROWS} of {len(table)} rows; all are in results.parquet."
        )
        note = f"Predicted by the simulator.{more}"
        return [
            Table(
                columns=("policy", "scenario", "tokens/s", "speed-up [95%]", "tokens/forward"),
                rows=rows,
                num_names=2,
                note=note,
                is_folded=True,
                title="Full table",
            )
        ]
    return []


def _comparison_table(rows: Sequence[ComparedPolicy]) -> Table:
    ordered = sorted(rows, key=lambda row: (row.temperature, -(row.speedup_over_autoregressive or 0.0)))
    cells = [
        [
            method_name(row.policy) if row.family != "prompt_lookup" else "prompt lookup",
            name_of(row.policy),
            f"{row.temperature:g}",
            with_interval(row.tokens_per_s, row.tokens_per_s_interval, 1),
            "-" if row.adjusted_tokens_per_s is None else f"{row.adjusted_tokens_per_s:.1f}",
            f"{row.predicted_tokens_per_s:.1f}",
            with_interval(row.speedup_over_autoregressive, row.speedup_interval),
            f"{row.tokens_per_target_forward:.2f}",
            *("-" if rate != rate else f"{rate:.0%}" for rate in (row.rollback_rate, row.wasted_draft_rate)),
            f"{row.wasted_target_rate:.0%}",
            f"{row.draft_forwards_per_token:.2f}",
            "yes" if row.is_identical else "NO",
        ]
        for row in ordered
    ]
    columns = (
        "method",
        "settings",
        "T",
        "tokens/s [95%]",
        "adjusted",
        "predicted",
        "speed-up [95%]",
        "tokens/forward",
        "rolled back",
        "unused",
        "wasted",
        "forwards/token",
        "identical",
    )
    note = (
        "Rolled back: rejected share of submitted draft tokens. Unused: share of drafted tokens that were never "
        "emitted. Wasted: share of target positions that emitted nothing. Identical: tokens and replayed rounds."
    )
    return Table(columns=columns, rows=cells, num_names=2, note=note, is_folded=True, title="Full table")


def _validation_table(validation: Validation) -> Table:
    rows = [
        [
            name_of(check.policy),
            f"{check.temperature:g}",
            with_interval(check.speedup, check.best_speedup_interval),
            with_interval(check.predicted_speedup, check.predicted_speedup_interval),
            "-" if check.speedup_error is None else f"{check.speedup_error:+.1%}",
            f"{check.speed:.1f}",
            f"{check.measured_tokens_per_s:.1f}",
            f"{check.predicted_tokens_per_s:.1f}",
            "-" if check.tokens_identical is None else "yes" if check.tokens_identical else "NO",
        ]
        for check in sorted(validation.policies, key=lambda check: (check.temperature, -check.speed))
    ]
    columns = (
        "policy",
        "T",
        "speed-up [95%]",
        "predicted [95%]",
        "error",
        "tokens/s adjusted",
        "tokens/s raw",
        "tokens/s predicted",
        "identical",
    )
    note = "Adjusted: at the machine's median speed. Identical: the tokens are those of plain decoding."
    return Table(columns=columns, rows=rows, note=note, is_folded=True, title="Full table")


def prediction_section(arm: Arm) -> Section | None:
    """Predicted against measured, with the noise floor."""
    validation = arm.validation
    if validation is None or validation.mean_abs_speedup_error is None:
        return None
    pairs = [
        (check, check.predicted_speedup, check.speedup)
        for check in validation.policies
        if check.predicted_speedup is not None and check.speedup is not None and check.policy != "autoregressive"
    ]
    if not pairs:
        return None
    low = min(min(predicted, measured) for _, predicted, measured in pairs)
    high = max(max(predicted, measured) for _, predicted, measured in pairs)
    floor = validation.same_policy_difference or 0.0
    ends = [0.9 * low, 1.1 * high]
    band: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": [*ends, *reversed(ends)],
        "y": [end * (1 + floor) for end in ends] + [end * (1 - floor) for end in reversed(ends)],
        "fill": "toself",
        "fillcolor": "rgba(138,143,152,0.25)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "name": "noise floor",
    }
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "line": {"color": GREY, "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    points = [
        {
            "type": "scatter",
            "mode": "markers",
            "showlegend": False,
            "x": [predicted],
            "y": [measured],
            "marker": {"size": 9, "color": colour(check.policy)},
            "error_x": error_bars([predicted], [check.predicted_speedup_interval]) | {"color": colour(check.policy)},
            "error_y": error_bars([measured], [check.best_speedup_interval]) | {"color": colour(check.policy)},
            "hovertemplate": f"{in_chart(name_of(check.policy))}, T = {check.temperature:g}"
            "<br>predicted %{x:.2f}<br>measured %{y:.2f}<extra></extra>",
        }
        for check, predicted, measured in pairs
    ]
    told = (
        f"The grey band is the noise floor: one policy, measured twice, differs from itself by {floor:.1%}."
        if validation.same_policy_difference is not None
        else "The noise floor is not known: plain decoding was not measured twice."
    )
    chart = Chart(
        name="prediction",
        title="Does the simulator tell the truth?",
        figure={"data": [band, diagonal, *points], "layout": layout("predicted speed-up", "measured speed-up")},
        height=380,
        note=told,
    )
    lead = (
        f"Speed-ups were predicted with a mean error of {validation.mean_abs_speedup_error:.1%}, "
        f"at worst {validation.worst_abs_speedup_error or 0.0:.1%}."
    )
    lines = [Text(text=f"{line[0].upper()}{line[1:]}.") for line in validation_lines(validation)]
    return Section(name="prediction", title="Predicted against measured", lead=lead, elements=[chart, *lines])

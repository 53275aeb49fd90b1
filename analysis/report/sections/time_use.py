"""Where the time of a token went: the target's verification, the draft before it, the host, and what overlapped."""

from __future__ import annotations

import pandas as pd

from analysis.report.charts import WORK_COLOURS, Figure, layout
from analysis.report.elements import Chart, Element, Section, Table, in_chart
from analysis.report.material import Arm
from analysis.verdict import PROBE, method_of, name_of
from traces.folder.run import Run
from traces.metrics.counts import count_rounds
from traces.schema import Actor, OpKind

PARTS = {
    "drafting while the target waits": WORK_COLOURS["draft, accepted"],
    "verifying": WORK_COLOURS["verify"],
    "host and waiting for each other": WORK_COLOURS["waiting"],
}
MAX_BARS = 14


def time_section(arm: Arm) -> Section | None:
    """Milliseconds a token, for every policy that was measured."""
    run = arm.measured
    if run is None or run.rounds.empty or run.ops.empty:
        return None
    rows = [
        (speed.policy, speed.temperature, time_use(run, speed.policy, speed.temperature))
        for speed in sorted(arm.speeds, key=lambda speed: (speed.temperature, -speed.tokens_per_s))
        if method_of(speed.policy) != PROBE
    ]
    elements: list[Element] = []
    for temperature in dict.fromkeys(temperature for _, temperature, _ in rows):
        here = [(policy, use) for policy, at, use in rows if at == temperature][:MAX_BARS]
        elements.append(
            Chart(
                name=f"time-{len(elements)}",
                title=f"T = {temperature:g}: milliseconds a token",
                figure=_bars([(in_chart(name_of(policy)), use) for policy, use in here]),
                height=110 + 30 * len(here),
                note="From the start of a request's first round to its last token, as measured, over its tokens.",
            )
        )
    cells = [
        [
            name_of(policy),
            f"{temperature:g}",
            *(f"{use[name]:.2f}" for name in (*PARTS, "all")),
            f"{use['target waits']:.0%}",
            f"{use['draft waits']:.0%}",
            f"{use['rolled back']:.0%}" if use["rolled back"] == use["rolled back"] else "-",
        ]
        for policy, temperature, use in rows
    ]
    columns = ("policy", "T", "drafting", "verifying", "rest", "all, ms", "target waits", "draft waits", "drafts lost")
    note = (
        "Milliseconds a token. Target waits, draft waits: share of the decode time in which that side did nothing, its "
        "bubbles. "
        "Drafts lost: share of drafted tokens that the user never got."
    )
    elements.append(Table(columns=columns, rows=cells, note=note, is_folded=True, title="In numbers"))
    return Section(name="time", title="Where the time went", elements=elements)


def time_use(run: Run, policy: str, temperature: float) -> dict[str, float]:
    """Milliseconds a token by part (`PARTS`, and all), and shares: target waits, draft waits, rolled back."""
    requests = run.requests[(run.requests.policy == policy) & (run.requests.temperature == temperature)]
    rounds = run.rounds[run.rounds.request_id.isin(requests.request_id)]
    ops = run.ops[run.ops.request_id.isin(requests.request_id) & (run.ops["round"] >= 0)]
    spans = rounds.groupby("request_id").agg(start_s=("start_s", "min"), end_s=("end_s", "max"))
    decode_s = float((spans.end_s - spans.start_s).sum())
    tokens = max(1, int(rounds.num_emitted.sum()))
    verify_s, draft_s = float(rounds.verify_s.sum()), float(rounds.draft_s.sum())
    serial_s = _seconds(ops[(ops.actor == Actor.DRAFT) & (ops.kind == OpKind.DRAFT) & ~ops.is_beside.astype(bool)])
    counts = count_rounds(round_ for request_id in requests.request_id for round_ in run.rounds_of(int(request_id)))
    per_token = {
        "drafting while the target waits": 1e3 * serial_s / tokens,
        "verifying": 1e3 * verify_s / tokens,
        "host and waiting for each other": 1e3 * max(0.0, decode_s - serial_s - verify_s) / tokens,
        "all": 1e3 * decode_s / tokens,
    }
    return per_token | {
        "target waits": max(0.0, 1 - verify_s / decode_s),
        "draft waits": max(0.0, 1 - draft_s / decode_s),
        "rolled back": counts.wasted_draft_rate,
    }


def _seconds(ops: pd.DataFrame) -> float:
    return float((ops.end_s - ops.start_s).sum())


def _bars(rows: list[tuple[str, dict[str, float]]]) -> Figure:
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": part,
                "y": [name for name, _ in rows],
                "x": [use[part] for _, use in rows],
                "marker": {"color": colour},
                "hovertemplate": f"%{{y}}<br>{part}: %{{x:.2f}} ms<extra></extra>",
            }
            for part, colour in PARTS.items()
        ],
        "layout": layout(
            "milliseconds a token",
            "",
            y={"autorange": "reversed", "type": "category", "showgrid": False},
            barmode="stack",
        ),
    }

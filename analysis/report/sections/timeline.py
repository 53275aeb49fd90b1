"""What draft and target did, round by round: work, waiting, branches and rollbacks, measured and simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.check.predict import frames_of
from analysis.report.charts import GREY, WORK_COLOURS, Figure, layout
from analysis.report.elements import Chart, Section, Text, in_chart
from analysis.report.material import Arm
from analysis.report.overlay import TIMES, traces_by_request
from analysis.verdict import PROBE, method_of, name_of
from sim.decoding.policies.catalog import parse_policy
from sim.engine import simulate
from traces.folder.run import Run
from traces.schema import Actor, Op, OpKind, RequestTrace

MAX_ROUNDS = 20  # of a request
MAX_VIEWS = 8  # policies to choose from
LANES = (Actor.TARGET, Actor.DRAFT, Actor.HOST)
MIN_WAIT_MS = 1e-3


def timeline_section(arm: Arm) -> Section | None:
    """The first rounds of a typical request under each policy."""
    views: dict[str, Figure] = {}
    run = arm.measured if arm.measured is not None and not arm.measured.ops.empty else None
    trace_of = traces_by_request(run) if run else lambda request_id: None
    for speed in sorted(arm.speeds, key=lambda speed: -speed.tokens_per_s) if run else []:
        if len(views) < MAX_VIEWS and method_of(speed.policy) != PROBE:
            assert run is not None
            name = in_chart(f"{name_of(speed.policy)}, T = {speed.temperature:g}")
            views[name] = _view(arm, run, trace_of, speed.policy, speed.temperature)
    if not views:
        for simulated in arm.simulated[:MAX_VIEWS]:
            if not simulated.ops.empty and len(simulated.requests):
                label = str(simulated.requests.policy.iloc[0])
                request_id = _typical(simulated.requests)
                views[in_chart(name_of(label))] = _figure(
                    [("simulated", *_of_request(simulated.ops, simulated.rounds, request_id))]
                )
    if not views:
        return None
    chart = Chart(
        name="timeline",
        title="Who worked when",
        views=views,
        height=430,
        note="Drag to zoom, double-click to see all. The pale bars are waiting. The row below says how many tokens each round "
        f"gave the user. Shown are the first {MAX_ROUNDS} rounds, at most, of a request of median speed under each policy.",
    )
    more = Text(
        text="For all requests: specbranch timeline RUN --output timeline.json, and open the file in ui.perfetto.dev."
    )
    lead = "A round ends when the target has verified; the draft's work beside it is free where it fits below."
    return Section(name="timeline", title="Timeline of draft and target", lead=lead, elements=[chart, more])


def _view(
    arm: Arm, run: Run, trace_of: Callable[[int], RequestTrace | None], policy: str, temperature: float
) -> Figure:
    requests = run.requests[(run.requests.policy == policy) & (run.requests.temperature == temperature)]
    request_id = _typical(requests)
    parts = [("measured", *_of_request(run.ops, run.rounds, request_id))]
    trace = trace_of(request_id)
    if trace is not None and arm.latency is not None:
        try:
            simulated = simulate(parse_policy(policy), [trace], arm.latency, label=policy)
        except ValueError:  # the trace cannot answer this policy
            return _figure(parts)
        ops = pd.DataFrame(simulated.ops, columns=Op._fields)
        parts.append(("simulated", *_of_request(ops, frames_of(simulated)[1], request_id)))
    return _figure(parts)


def _typical(requests: pd.DataFrame) -> int:
    """The request of median seconds a token."""
    seconds = (requests.finish_s - requests.first_token_s) / requests.num_output_tokens.clip(lower=1)
    return int(requests.request_id.to_numpy()[seconds.argsort().to_numpy()[(len(seconds) - 1) // 2]])


def _of_request(ops: pd.DataFrame, rounds: pd.DataFrame, request_id: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Its first rounds, with times in milliseconds since the first of them began."""
    rounds = rounds[(rounds.request_id == request_id) & (rounds["round"] < MAX_ROUNDS)]
    ops = ops[(ops.request_id == request_id) & (ops["round"] >= 0) & (ops["round"] < MAX_ROUNDS)]
    if rounds.empty:
        return ops, rounds
    begun_s = float(rounds.start_s.min())
    ops, rounds = (table.assign(**{name: 1e3 * (table[name] - begun_s) for name in TIMES}) for table in (ops, rounds))
    return ops, rounds


def _figure(parts: Sequence[tuple[str, pd.DataFrame, pd.DataFrame]]) -> Figure:
    """parts: (measured or simulated, operations, rounds); one above the other, on one axis of time."""
    bars: dict[str, list[tuple[float, float, str, str]]] = {name: [] for name in ("waiting", *WORK_COLOURS)}
    lanes: list[str] = []
    shapes: list[Figure] = []
    texts: list[Figure] = []
    for source, ops, rounds in parts:
        by_round = {int(round_["round"]): round_ for round_ in rounds.to_dict("records")}
        for actor in LANES:
            lane = f"{actor}, {source}"
            mine = ops[ops.actor == actor].sort_values("start_s")
            if mine.empty:
                continue
            lanes.append(lane)
            until, places = 0.0, dict.fromkeys(by_round, 0)
            for op in mine.to_dict("records"):
                index = int(op["round"])
                if actor != Actor.HOST and op["start_s"] - until > MIN_WAIT_MS:
                    bars["waiting"].append((until, op["start_s"], lane, "waiting"))
                name = _name_of(op, by_round.get(index), places)
                hover = f"round {index}: {name}, {op['num_tokens']} tokens" + (
                    f", {op['num_branches']} rows" if op["num_branches"] > 1 else ""
                )
                bars[name].append((op["start_s"], op["end_s"], lane, hover))
                until = max(until, op["end_s"])
        lane = f"tokens, {source}"
        lanes.append(lane)
        texts.append(
            {
                "type": "scatter",
                "mode": "text",
                "x": ((rounds.start_s + rounds.end_s) / 2).tolist(),
                "y": [lane] * len(rounds),
                "text": [f"+{emitted}" for emitted in rounds.num_emitted],
                "hovertext": [_outcome(round_) for round_ in rounds.to_dict("records")],
                "hoverinfo": "text",
                "showlegend": False,
                "textfont": {"size": 11},
            }
        )
        shapes += [
            {
                "type": "line",
                "x0": end,
                "x1": end,
                "y0": lanes.index(lane) - (len(LANES) + 0.5),
                "y1": lanes.index(lane) + 0.5,
                "line": {"width": 0.6, "color": GREY},
            }
            for end in rounds.end_s
        ]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [lane for _, _, lane, _ in entries],
            "base": [start for start, _, _, _ in entries],
            "x": [end - start for start, end, _, _ in entries],
            "text": None,
            "hovertext": [f"{hover}<br>{end - start:.2f} ms" for start, end, _, hover in entries],
            "hoverinfo": "text",
            "width": 0.35 if name == "waiting" else 0.8,
            "marker": {"color": WORK_COLOURS[name], "opacity": 0.45 if name == "waiting" else 1.0},
        }
        for name, entries in bars.items()
        if entries
    ]
    return {
        "data": [*data, *texts],
        "layout": layout(
            "time since the first round began (ms)",
            "",
            x={
                "fixedrange": False,
                "range": [0, max((float(rounds.end_s.max()) for _, _, rounds in parts), default=1.0)],
            },
            y={"categoryorder": "array", "categoryarray": lanes, "autorange": "reversed", "showgrid": False},
            barmode="overlay",
            dragmode="zoom",
            shapes=shapes,
        ),
    }


def _name_of(op: Mapping[Any, Any], round_: Mapping[Any, Any] | None, places: dict[int, int]) -> str:
    """What an operation was and what became of it. places: serial draft tokens so far, by round."""
    kind, index = op["kind"], int(op["round"])
    if kind == OpKind.VERIFY:
        return "verify"
    if op["actor"] == Actor.HOST or kind not in (OpKind.DRAFT, OpKind.LOOK, OpKind.BRANCH) or round_ is None:
        return "host"
    if op["is_beside"] or kind != OpKind.DRAFT:
        return "branches, hit" if round_["is_hit"] else "branches, missed"
    carried = int(round_["num_pending"]) - int(round_["num_serial"])
    place = carried + places[index]
    places[index] += 1
    return "draft, accepted" if place < int(round_["num_accepted"]) else "draft, rolled back"


def _outcome(round_: Mapping[Any, Any]) -> str:
    lost = sum(int(round_[f"num_{name}"]) for name in ("rejected", "sibling", "trimmed", "unused"))
    return (
        f"round {round_['round']}: {round_['num_accepted']} of {round_['num_pending']} accepted, "
        f"{round_['num_emitted']} emitted, {lost} drafted tokens lost"
    )

"""A run's operations as a timeline that opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

Chrome's trace event format in JSON: one process a device, one track an actor, one slice an operation. Simulated operations
have a track right below that of the actor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from traces.files import write_text
from traces.schema import Actor, OpKind

US_PER_S = 1e6
SIMULATED = "simulated"  # in a column `source` of operations that no device did
ACTORS = (Actor.TARGET, Actor.DRAFT, Actor.HOST)  # from the top
COUNTED = ("round", "num_tokens", "num_branches", "context_tokens", "batch")


def write_timeline(ops: pd.DataFrame, path: str | Path, rounds: pd.DataFrame | None = None) -> None:
    """Write the timeline of `ops` (columns of `traces.schema.Op`, and optionally source: `SIMULATED` or missing).

    rounds: if given (`Round` and `RoundTimes`), tokens accepted and added a round are drawn as a counter, and an
    arrow leads from each round's last operation of drafting to its verification.
    """
    ops = ops.assign(source=ops["source"].fillna("") if "source" in ops else "")
    events = [*_names(ops), *_slices(ops)]
    if rounds is not None:
        events += [*_counters(rounds), *_arrows(ops[ops["source"] == ""])]
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"), allow_nan=False)
    write_text(Path(path), text)


def _tracks(ops: pd.DataFrame) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(device, actor, source) -> (process, thread), both from 1; threads of simulated operations are even."""
    devices = {device: index for index, device in enumerate(sorted(set(ops["device"])), start=1)}
    found = set(zip(ops["device"], ops["actor"], ops["source"], strict=True))
    return {
        (device, actor, source): (devices[device], 2 * _place(actor)[0] + 1 + bool(source))
        for device, actor, source in sorted(found, key=lambda key: (key[0], _place(key[1]), key[2]))
    }


def _track_of(op: Mapping[Any, Any], tracks: Mapping[tuple[str, str, str], tuple[int, int]]) -> tuple[int, int]:
    return tracks[op["device"], op["actor"], op["source"]]


def _place(actor: str) -> tuple[int, str]:
    return (ACTORS.index(actor) if actor in ACTORS else len(ACTORS), actor)


def _names(ops: pd.DataFrame) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for (device, actor, source), (process, thread) in _tracks(ops).items():
        place = {"ph": "M", "pid": process, "tid": thread}
        events.append({**place, "name": "process_name", "args": {"name": device}})
        events.append({**place, "name": "thread_name", "args": {"name": f"{actor}, {source}" if source else actor}})
        events.append({**place, "name": "thread_sort_index", "args": {"sort_index": thread}})
    return events


def _slices(ops: pd.DataFrame) -> list[dict[str, Any]]:
    tracks = _tracks(ops)
    return [
        {
            "ph": "X",
            "name": op["kind"],
            "cat": op["actor"],
            "pid": _track_of(op, tracks)[0],
            "tid": _track_of(op, tracks)[1],
            "ts": op["start_s"] * US_PER_S,
            "dur": max(0.0, (op["end_s"] - op["start_s"]) * US_PER_S),
            "args": {"request": op["request_id"], **{name: op[name] for name in COUNTED}},
        }
        for op in ops.to_dict("records")
    ]


def _counters(rounds: pd.DataFrame) -> list[dict[str, Any]]:
    """A counter of process 0 that steps at the end of each round."""
    name = {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "tokens"}}
    return [name] + [
        {
            "ph": "C",
            "name": "tokens a round",
            "pid": 0,
            "ts": round_["end_s"] * US_PER_S,
            "args": {
                "accepted": round_["num_accepted"],
                "added by the target": round_["num_emitted"] - round_["num_accepted"],
            },
        }
        for round_ in rounds.to_dict("records")
    ]


def _arrows(ops: pd.DataFrame) -> list[dict[str, Any]]:
    """From the last serial draft of a round to its verification."""
    tracks = _tracks(ops)
    drafts: dict[tuple[int, int], dict[Any, Any]] = {}
    events: list[dict[str, Any]] = []
    for op in ops.sort_values("start_s", kind="stable").to_dict("records"):
        key = (op["request_id"], op["round"])
        if op["kind"] == OpKind.DRAFT:
            drafts[key] = op
        elif op["kind"] == OpKind.VERIFY and key in drafts:
            for phase, end in (("s", drafts[key]), ("f", op)):
                process, thread = _track_of(end, tracks)
                # Halfway into the slice, so that it is plain which slice the arrow belongs to.
                middle_us = (end["start_s"] + end["end_s"]) / 2 * US_PER_S
                event = {"ph": phase, "name": "submit", "cat": "submit", "id": f"{key[0]}.{key[1]}"}
                events.append(
                    event | {"pid": process, "tid": thread, "ts": middle_us} | ({"bp": "e"} if phase == "f" else {})
                )
    return events

"""The timeline holds every operation once, on its own track, in microseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from traces.folder.perfetto import write_timeline
from traces.schema import Op

OPS = pd.DataFrame(
    [
        Op(3, 0, "draft", "cpu:1", "draft", False, 0.001, 0.002, 1, 1, 1, 20),
        Op(3, 0, "target", "cpu:0", "verify", False, 0.002, 0.007, 2, 1, 1, 20),
        Op(3, 0, "draft", "cpu:1", "branch", True, 0.002, 0.004, 1, 1, 4, 21),
        Op(3, 0, "host", "cpu:0", "host", False, 0.007, 0.0072, 1, 1, 4, 0),
    ]
)
ROUNDS = pd.DataFrame([{"end_s": 0.0072, "num_accepted": 1, "num_emitted": 2}])


def timeline(path: Path, rounds: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    write_timeline(OPS, path, rounds)
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def test_every_operation_is_one_slice_in_microseconds(tmp_path: Path) -> None:
    slices = [event for event in timeline(tmp_path / "t.json") if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["draft", "verify", "branch", "host"]
    assert slices[1]["ts"] == pytest.approx(2000)
    assert slices[1]["dur"] == pytest.approx(5000)
    assert slices[2]["args"] == {
        "request": 3,
        "round": 0,
        "num_tokens": 1,
        "num_branches": 4,
        "context_tokens": 21,
        "batch": 1,
    }


def test_one_track_for_each_actor_of_each_device(tmp_path: Path) -> None:
    events = timeline(tmp_path / "t.json")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    devices = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    drawn = [(devices[e["pid"]], names[e["pid"], e["tid"]], e["name"]) for e in events if e["ph"] == "X"]
    assert drawn == [
        ("cpu:1", "draft", "draft"),
        ("cpu:0", "target", "verify"),
        ("cpu:1", "draft", "branch"),
        ("cpu:0", "host", "host"),
    ]
    assert len(names) == 3


def test_rounds_become_counters_and_arrows(tmp_path: Path) -> None:
    events = timeline(tmp_path / "t.json", ROUNDS)
    (counter,) = [event for event in events if event["ph"] == "C"]
    assert counter["args"] == {"accepted": 1, "added by the target": 1}
    start, end = [event for event in events if event["ph"] in "sf"]
    assert (start["ph"], end["ph"], start["id"]) == ("s", "f", end["id"])
    assert start["ts"] < end["ts"]


def test_no_operation_is_an_empty_timeline(tmp_path: Path) -> None:
    write_timeline(OPS.iloc[:0], tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"] == []

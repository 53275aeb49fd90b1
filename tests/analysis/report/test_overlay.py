"""Timelines with simulated tracks below measured ones."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from analysis.report.overlay import draw_timeline
from tests.analysis.report.made_up_pair import write_pair
from traces.folder.run import RunError, read_run


def test_measured_and_simulated_operations_are_the_same_ones_on_neighbouring_tracks(tmp_path: Path) -> None:
    folder, output = write_pair(tmp_path / "run", num_requests=4), tmp_path / "timeline.json"
    drawn = draw_timeline(folder, output)
    assert (drawn.num_requests, drawn.num_simulated, drawn.num_left_out) == (12, 12, 0)
    assert drawn.error is not None
    assert abs(drawn.error) < 0.05  # the made-up times are those of a law that a calibration finds
    events = json.loads(output.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names.values()) == sorted(
        f"{actor}{source}" for actor in ("target", "draft", "host") for source in ("", ", simulated")
    )
    slices = [e for e in events if e["ph"] == "X"]
    counts: dict[str, int] = defaultdict(int)
    for event in slices:
        counts[names[event["pid"], event["tid"]]] += 1
    for actor in ("target", "draft", "host"):
        assert counts[actor] == counts[f"{actor}, simulated"] > 0
    assert sum(counts.values()) == 2 * len(read_run(folder).ops)


def test_no_two_slices_of_a_track_overlap(tmp_path: Path) -> None:
    folder, output = write_pair(tmp_path / "run", num_requests=4), tmp_path / "timeline.json"
    draw_timeline(folder, output)
    by_track = defaultdict(list)
    for event in json.loads(output.read_text())["traceEvents"]:
        if event["ph"] == "X":
            by_track[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_track.values():
        spans.sort()
        assert all(start >= end - 1e-3 for (_, end), (start, _) in itertools.pairwise(spans))


def test_only_the_first_requests_are_drawn_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder, output = write_pair(tmp_path / "run", num_requests=4), tmp_path / "timeline.json"
    drawn = draw_timeline(folder, output, max_requests=5)
    assert (drawn.num_requests, drawn.num_left_out) == (5, 7)
    with pytest.raises(RunError, match="exists already"):
        draw_timeline(folder, output)
    with pytest.raises(RunError, match="there is no folder"):
        draw_timeline(tmp_path / "nowhere", tmp_path / "other.json")

"""Overlap from operations and rounds, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.laws.overlap import measure_overlap


def test_overlap_counts_only_what_runs_beside_a_verification() -> None:
    ops = pd.DataFrame(
        [
            (0, 0, "draft", 0.0, 1.0),  # serial
            (0, 0, "look", 1.0, 2.0),
            (0, 0, "branch", 2.0, 4.0),
            (0, 0, "verify", 1.0, 3.5),
            (0, 1, "draft", 5.0, 6.0),  # a serial round: left out
            (0, 1, "verify", 6.0, 9.0),
            (0, 2, "look", 10.0, 11.0),
            (0, 2, "verify", 10.0, 14.0),
        ],
        columns=["request_id", "round", "kind", "start_s", "end_s"],
    )
    ops["actor"] = ["target" if kind == "verify" else "draft" for kind in ops.kind]
    ops["is_beside"] = ops.kind.isin(["look", "branch"])
    rounds = pd.DataFrame(
        [(0, 0, 0.0, 5.0, 2.5), (0, 1, 5.0, 10.0, 3.0), (0, 2, 10.0, 14.0, 4.0)],
        columns=["request_id", "round", "start_s", "end_s", "verify_s"],
    )
    found = measure_overlap(ops, rounds)
    assert found.num_rounds == 2
    assert found.wall_s == pytest.approx(4.0 + 4.0)
    assert found.bound_s == pytest.approx(3.0 + 4.0)
    assert found.wall_over_bound == pytest.approx(8 / 7)
    assert found.wall_over_serial == pytest.approx(8 / (3 + 1 + 2.5 + 4))


def test_a_run_without_overlap_is_refused() -> None:
    columns = ["request_id", "round", "actor", "kind", "is_beside", "start_s", "end_s"]
    ops = pd.DataFrame([(0, 0, "draft", "draft", False, 0.0, 1.0)], columns=columns)
    rounds = pd.DataFrame([(0, 0, 0.0, 5.0, 2.5)], columns=["request_id", "round", "start_s", "end_s", "verify_s"])
    with pytest.raises(ValueError, match="pearl"):
        measure_overlap(ops, rounds)

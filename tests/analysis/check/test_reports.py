"""Reports are files beside a run's tables; those that the first version put into summary.json are still understood."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path

import pytest

from analysis.check.comparison import COMPARISON, ComparedPolicy, read_comparison
from analysis.check.reports import write_report
from analysis.check.validation import VALIDATION, PolicyCheck, Validation, read_validation
from traces.folder.run import RunError

CHECK = PolicyCheck(
    policy="pearl:draft_length=4",
    temperature=0.5,
    predicted_tokens_per_s=110.0,
    predicted_interval=(100.0, 120.0),
    measured_tokens_per_s=100.0,
    measured_interval=(90.0, 110.0),
    relative_error=0.1,
    latency_error=0.04,
    acceptance_error=0.06,
    speedup_over_autoregressive=None,
    speedup_interval=None,
    predicted_speedup=1.2,
    tokens_identical=True,
    rounds_identical=False,
)
REPORT = Validation(
    policies=[CHECK, replace(CHECK, speedup_over_autoregressive=1.5, speedup_interval=(1.4, 1.6))],
    mean_abs_relative_error=0.1,
    worst_abs_relative_error=0.1,
    mean_abs_latency_error=0.04,
    worst_abs_latency_error=0.04,
    regret=0.0,
    tokens_identical=None,
    rounds_identical=False,
    num_rounds_compared=12,
    num_requests_within_rounding=1,
    contention={"mean_other_share": 0.25},
    is_claim=False,
    note="busy",
)
ROW = ComparedPolicy(
    family="autoregressive",
    policy="autoregressive",
    temperature=0.0,
    tokens_per_s=50.0,
    tokens_per_s_interval=(45.0, 55.0),
    predicted_tokens_per_s=51.0,
    speedup_over_autoregressive=1.0,
    speedup_interval=(1.0, 1.0),
    tokens_per_target_forward=1.0,
    rollback_rate=float("nan"),
    wasted_draft_rate=float("nan"),
    wasted_target_rate=0.0,
    draft_forwards_per_token=0.0,
    tokens_identical=True,
    rounds_identical=True,
)


def test_a_validation_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_report(tmp_path, VALIDATION, REPORT)
    assert read_validation(tmp_path) == REPORT
    assert [path.name for path in tmp_path.iterdir()] == ["validation.json"]


def test_a_comparison_is_read_as_it_was_written_unknown_rates_included(tmp_path: Path) -> None:
    speculative = replace(ROW, family="pearl", rollback_rate=0.25, wasted_draft_rate=0.5, speedup_interval=None)
    write_report(tmp_path, COMPARISON, [ROW, speculative])
    plain, other = read_comparison(tmp_path)
    assert other == speculative
    assert isnan(plain.rollback_rate)
    assert isnan(plain.wasted_draft_rate)
    assert asdict(plain)["tokens_per_s_interval"] == (45.0, 55.0)


def test_reports_in_a_summary_of_the_first_version_are_understood(tmp_path: Path) -> None:
    check = {key: value for key, value in asdict(CHECK).items() if not key.endswith("_identical")}
    check["speedup_interval"] = [None, None]  # not-a-numbers, as JSON held them
    row = {**asdict(ROW), "rollback_rate": None, "wasted_draft_rate": None}
    summary = {VALIDATION: {**asdict(REPORT), "policies": [check]}, COMPARISON: [row]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    old = replace(CHECK, tokens_identical=None, rounds_identical=None)
    assert read_validation(tmp_path) == replace(REPORT, policies=[old])
    assert read_comparison(tmp_path)[0].tokens_per_s == 50.0


def test_a_folder_without_a_report_says_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="holds no validation"):
        read_validation(tmp_path)

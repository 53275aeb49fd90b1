"""Deciding commands end with one verdict, in words and as JSON; the report says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.cli.tables import pasted_label
from analysis.report.answers import Answers
from analysis.report.material import read_arm
from tests.analysis.command import call
from tests.analysis.report.made_up_pair import write_pair


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("runs") / "pair")


def explore(run: Path, output: Path, *more: str) -> int:
    policies = [
        "--policy",
        "fixed_length:draft_length=2",
        "--policy",
        "pearl:draft_length=4",
        "--policy",
        "autoregressive",
    ]
    return call("explore", "--run", str(run), "--output-dir", str(output), *policies, *more)


def test_explore_ends_with_a_verdict_that_says_what_to_run_next(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explore(run_folder, tmp_path / "explored") == 0
    printed = " ".join(capsys.readouterr().out.split())
    verdict = Answers(read_arm(tmp_path / "explored")).verdicts[0]
    assert verdict.is_shown
    assert verdict.answer in printed
    assert f"specbranch validate --run {run_folder}" in printed
    assert verdict.policy is not None
    assert f"--policy {pasted_label(verdict.policy)}" in printed


def test_json_is_all_that_stands_on_standard_output(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explore(run_folder, tmp_path / "explored", "--json") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["folder"] == str(tmp_path / "explored")
    assert [each["where"] for each in told["verdicts"]] == ["T=1 two_devices"]
    assert told["verdicts"][0]["policy"] in ("fixed_length:draft_length=2", "pearl:draft_length=4")
    assert told["verdicts"][0]["speedup"] > 1
    assert "Best of 3 policies" in captured.err


def test_the_report_command_says_where_it_wrote(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", str(run_folder), "--output", str(tmp_path / "report.html")) == 0
    assert "report.html" in "".join(capsys.readouterr().out.split())
    assert call("report", str(run_folder), "--output", str(tmp_path / "report.html")) == 1
    assert "exists already" in capsys.readouterr().err

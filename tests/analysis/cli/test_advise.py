"""`specbranch advise` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.command import call
from traces.fits.step_costs import ForwardCost, StepCosts

NUMBERS = ("--per-position", "0.78,0.65,0.5", "--target-ms", "34", "--draft-ms", "3")


def test_the_verdict_comes_first_and_everything_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: (34 + 9) / (1 + 0.78 + 0.65 + 0.5) = 14.68 ms a token, 2.32 times as fast as 34."""
    assert call("advise", *NUMBERS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "K = 3: one request decodes 2.32 times as fast, 14.7 instead of 34 ms a token."
    table = lines[lines.index(next(line for line in lines if "tokens/step" in line)) :]
    assert max(map(len, table[:7])) <= 80  # text below it wraps by itself
    assert [line.split()[0] for line in table[1:7]] == ["0", "1", "2", "3", "4?", "5?"]


def test_a_draft_that_costs_too_much_is_advised_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("advise", "--per-position", "0.2", "--target-ms", "10", "--draft-ms", "9") == 0
    assert capsys.readouterr().out.startswith("Do not speculate")


def test_step_costs_answer_by_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.json"
    StepCosts(target=ForwardCost(floor_s=0.03, token_s=2e-4), draft=ForwardCost(floor_s=0.002)).write(path)
    assert call("advise", "--per-position", "0.78,0.65", "--costs", str(path), "--context", "500") == 0
    out = capsys.readouterr().out
    assert "1: K = 2 (" in out
    assert "256: K = 0 (1.00x)" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--per-position", "78,65", "--target-ms", "34", "--draft-ms", "3"), "divide percent by 100"),
        (("--per-position", "0.5,0.6", "--target-ms", "34", "--draft-ms", "3"), "never rise"),
        (("--per-position", "many", "--target-ms", "34", "--draft-ms", "3"), "not a list of numbers"),
        (("--per-position", "0.5"), "give --target-ms and --draft-ms"),
        (("--per-position", "0.5", "--target-ms", "34"), "give --target-ms and --draft-ms"),
        ((*NUMBERS, "--costs", "nowhere.json"), "leave out"),
        (("--per-position", "0.5", "--costs", "nowhere.json"), "does not hold step costs"),
        ((*NUMBERS[:-1], "-3"), "at least 0"),
        ((*NUMBERS, "--max-length", "0"), "at least 1"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("advise", *options) in (1, 2)
    errors = capsys.readouterr().err.strip()
    assert told in " ".join(errors.split())
    assert errors.startswith("error: ")

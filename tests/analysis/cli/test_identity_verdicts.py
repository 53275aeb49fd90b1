"""The verdict NO comes with a reason and an exit code, wherever a command prints it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.check.identity import why_rounds_differ, why_tokens_differ
from analysis.check.validation import Validation
from analysis.cli.options import NOT_IDENTICAL
from analysis.tuning.what_if import WhatIf
from tests.analysis.check.test_reports import REPORT, ROW
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.folder.run import read_run

BAD = replace(REPORT, tokens_identical=False, reason="the tokens of pearl differ")
GOOD = replace(REPORT, tokens_identical=True, rounds_identical=True, note="", reason="")


def _requests(tmp_path: Path) -> pd.DataFrame:
    requests = read_run(write_run(tmp_path / "run", num_requests=3)).requests
    other = requests.assign(policy="pearl:draft_length=4")
    return pd.concat([requests, other], ignore_index=True)


def test_the_reason_names_policy_temperature_prompt_and_cause(tmp_path: Path) -> None:
    requests = _requests(tmp_path)
    assert why_tokens_differ(requests, "float32") == ""
    requests.loc[requests.index[4:], "tokens_sha256"] = "other"
    told = why_tokens_differ(requests, "float32")
    assert "the tokens of pearl:draft_length=4 at T = 1 are not those of autoregressive on prompt prompt-1" in told
    assert "1 more requests differ" in told
    assert "report" in told
    assert "near tie" in why_tokens_differ(requests, "bfloat16")
    assert why_rounds_differ(frozenset(), "float32") == ""
    assert "rounds of pearl at T = 0.5" in why_rounds_differ({("pearl", 0.5)}, "float32")


def test_without_plain_decoding_the_first_policy_stands_for_it(tmp_path: Path) -> None:
    requests = _requests(tmp_path).replace("autoregressive", "fixed_length:draft_length=2")
    requests.loc[5, "tokens_sha256"] = "other"
    assert "not those of fixed_length:draft_length=2 on prompt prompt-2" in why_tokens_differ(requests, "float32")


@pytest.mark.parametrize("is_identical", [True, False])
@pytest.mark.parametrize("command", ["record", "validate", "compare", "demo"])
def test_no_is_an_exit_code_and_a_reason(
    command: str,
    is_identical: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    requests = _requests(tmp_path)
    if not is_identical:
        requests.loc[4, "tokens_sha256"] = "other"
    validation = GOOD if is_identical else BAD

    def demo(console: object, *_: object, **__: object) -> Validation:
        from analysis.cli.tables import print_validation

        print_validation(console, validation)  # type: ignore[arg-type]
        return validation

    rounds = pd.DataFrame({"request_id": [0], "start_s": [0.0], "end_s": [1.0]})
    run = SimpleNamespace(requests=requests, rounds=rounds, summary={"tokens_identical": is_identical})
    row = replace(ROW, tokens_identical=is_identical, reason=validation.reason)
    monkeypatch.setattr("executor.recording.recorder.record_run", lambda *_, **__: run)
    monkeypatch.setattr("traces.metrics.speeds.measured_speeds", lambda *_, **__: [])
    monkeypatch.setattr("analysis.check.validate.validate_run", lambda *_, **__: validation)
    monkeypatch.setattr("analysis.check.compare.compare", lambda *_, **__: [row])
    monkeypatch.setattr("analysis.demo.run_demo", demo)
    nothing = WhatIf(costs=[], simulated=[], stops_paying={})
    monkeypatch.setattr("analysis.tuning.what_if.read_what_if", lambda _: nothing)
    for name in ("validate", "compare"):  # which wrote no folders
        monkeypatch.setattr(f"analysis.cli.models.{name}.conclude", lambda *_, **__: None)
    options = ["--run", str(tmp_path / "run")] if command == "validate" else []
    code = call(command, "--output-dir", str(tmp_path / "out"), *options)
    told = capsys.readouterr().out
    assert code == (0 if is_identical else NOT_IDENTICAL)
    assert ("NO" in told.split()) != is_identical
    assert ("the tokens of pearl" in told) != is_identical


def test_rounds_that_differ_are_no_success_either() -> None:
    assert GOOD.is_identical
    assert replace(GOOD, tokens_identical=None).is_identical  # synthetic acceptance claims nothing
    assert not replace(GOOD, rounds_identical=False).is_identical
    assert not BAD.is_identical

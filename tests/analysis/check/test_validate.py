"""The loop closed on real models: identity claims hold, errors are taken apart, and a broken claim is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.check.identity import compare_rounds
from analysis.check.validate import _regret, validate_run
from analysis.check.validation import PolicyCheck
from executor.pair import Session
from executor.recording.recorder import record_run
from executor.recording.settings import read_settings
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.fixed_length import FixedLength
from tests.settings import record_settings
from traces.folder.run import Run, read_run


@pytest.fixture(scope="module")
def validated(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated") / "run"
    validate_run(recorded, folder, [FixedLength(3), Pearl(5)], num_prompts=2)
    return folder


def test_the_summary_holds_what_was_promised(validated: Path) -> None:
    found = json.loads((validated / "validation.json").read_text())["validation"]
    assert {entry["policy"] for entry in found["policies"]} == {
        "autoregressive",
        "fixed_length:draft_length=3",
        "pearl:draft_length=5",
    }
    for entry in found["policies"]:
        assert entry["measured_interval"][0] <= entry["measured_tokens_per_s"] <= entry["measured_interval"][1]
        assert entry["relative_error"] == pytest.approx(
            entry["predicted_tokens_per_s"] / entry["measured_tokens_per_s"] - 1
        )
        parts = ("latency_error", "acceptance_error", "machine_error")
        assert entry["relative_error"] == pytest.approx(sum(entry[part] for part in parts))
        is_baseline = entry["policy"] == "autoregressive"
        assert (entry["speedup_error"] is None) == is_baseline
        if not is_baseline:
            assert entry["speedup_error"] == pytest.approx(entry["predicted_speedup"] / entry["adjusted_speedup"] - 1)
            low, high = entry["predicted_speedup_interval"]
            assert low <= entry["predicted_speedup"] <= high
    speedup_errors = [abs(entry["speedup_error"]) for entry in found["policies"] if entry["speedup_error"] is not None]
    assert found["mean_abs_speedup_error"] == pytest.approx(sum(speedup_errors) / len(speedup_errors))
    assert found["worst_abs_speedup_error"] == max(speedup_errors)
    assert found["same_policy_difference"] >= 0
    assert 0 <= found["interval_coverage"] <= 1
    assert found["drift_range"][0] <= 1 <= found["drift_range"][1]
    assert found["is_claim"] == (not found["note"])
    errors = [abs(entry["relative_error"]) for entry in found["policies"]]
    assert found["mean_abs_relative_error"] == pytest.approx(sum(errors) / len(errors))
    assert found["worst_abs_relative_error"] == max(errors)
    assert found["regret"] >= 0
    assert found["tokens_identical"] is True
    assert found["rounds_identical"] is True
    assert "mean_other_share" in found["contention"]


def test_the_validation_uses_prompts_that_were_not_recorded(recorded: Path, validated: Path) -> None:
    old = set(read_run(recorded).requests.prompt_id)
    requests = read_run(validated).requests
    tested = requests[~requests.prompt_id.isin(old)]
    assert set(tested.policy) == {"autoregressive", "fixed_length:draft_length=3", "pearl:draft_length=5"}
    assert set(requests[requests.prompt_id.isin(old)].policy) == set(read_run(recorded).requests.policy)
    # The baseline ran twice on each new prompt, and nothing else did, nowhere.
    assert requests[requests.prompt_id.isin(old)].repeat.max() == 0
    counts = tested.groupby(["prompt_id", "temperature", "policy"]).size()
    assert set(counts.xs("autoregressive", level="policy")) == {2}
    assert set(counts.drop("autoregressive", level="policy")) == {1}


def test_rounds_that_differ_are_seen(validated: Path) -> None:
    run = read_run(validated)
    assert compare_rounds(run).is_identical
    whole = run.rounds_of
    run.rounds_of = lambda request_id: [  # type: ignore[method-assign]
        round_._replace(num_drafted=round_.num_drafted + 1) if round_.round == 1 and request_id == 0 else round_
        for round_ in whole(request_id)
    ]
    assert not compare_rounds(run).is_identical


def test_tokens_that_differ_are_seen(recorded: Path) -> None:
    from traces.metrics.speeds import mismatched_prompts

    requests: pd.DataFrame = read_run(recorded).requests
    assert mismatched_prompts(requests) == []
    requests.loc[0, "tokens_sha256"] = "something else"
    assert mismatched_prompts(requests)


def test_regret_is_what_the_choice_lost() -> None:
    def check(policy: str, predicted: float, measured: float) -> PolicyCheck:
        return PolicyCheck(
            policy=policy,
            temperature=0.0,
            predicted_tokens_per_s=predicted,
            predicted_interval=(predicted, predicted),
            measured_tokens_per_s=measured,
            measured_interval=(measured, measured),
            relative_error=predicted / measured - 1,
            latency_error=0.0,
            acceptance_error=0.0,
            speedup_over_autoregressive=None,
            speedup_interval=(1.0, 1.0),
            predicted_speedup=None,
        )

    assert _regret([check("a", 10, 8), check("b", 9, 10)], 0.0) == pytest.approx(10 / 8 - 1)
    assert _regret([check("a", 10, 10), check("b", 9, 8)], 0.0) == 0.0


def test_a_recording_can_be_stopped_and_read(session: Session, tmp_path: Path) -> None:
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if done == 3:
            raise KeyboardInterrupt

    settings = record_settings(num_prompts=2, max_new_tokens=16, capacity=512)
    with pytest.raises(KeyboardInterrupt):
        record_run(settings, tmp_path / "cut", session=session, progress=stop)
    run: Run = read_run(tmp_path / "cut")
    assert not run.is_complete
    assert len(run.requests) >= 1
    assert set(run.rounds.request_id) >= set(run.requests.request_id)


def test_repeats_and_stop_strings_are_recorded(session: Session, tmp_path: Path) -> None:
    settings = record_settings(
        num_prompts=1, max_new_tokens=16, repeats=2, temperatures=(1.0,), stop_strings=("return",), capacity=512
    )
    run = record_run(settings, tmp_path / "run", session=session)
    assert sorted(run.requests.repeat.unique()) == [0, 1]
    assert read_settings(run.config) == settings

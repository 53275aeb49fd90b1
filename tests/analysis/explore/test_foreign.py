"""A foreign trace is explored with a calibration, between bounds, and never beyond what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.explore.exploration import explore_study
from analysis.study.study import Study, StudyError
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import calibrate
from traces.folder.run import read_run
from traces.importers.base import ForeignTraceError
from traces.importers.unseen import Unseen

LABELS = ["autoregressive", *(f"fixed_length:draft_length={length}" for length in (2, 4, 6))]


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    calibrate(read_run(write_run(tmp_path / "run"))).save(tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What a server with draft length 4 would report."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(6):
        accepted = np.minimum(rng.geometric(0.35, 20) - 1, 4).tolist()
        steps = {"per_step_accepted": accepted, "per_step_drafted": [4] * 20}
        usage = {"prompt_tokens": 50, "completion_tokens": 21 + sum(accepted)}
        lines.append({"id": f"cmpl-{index}", "usage": usage, "metrics": {"speculative_decoding": steps}})
    path = tmp_path / "served.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_served_length_is_exact_and_others_are_bounded(trace: Path, calibration: Path, tmp_path: Path) -> None:
    study = Study(policies=list(LABELS))
    study.conditions.temperatures.append(0.0)
    low, high = (
        explore_study(trace, tmp_path / each, study, latency=calibration, unseen=each, is_sensitive=False)
        for each in (Unseen.REJECTED, Unseen.ACCEPTED)
    )
    for policy, lower, upper in zip(LABELS, low.speeds, high.speeds, strict=True):
        assert (lower.policy, upper.policy) == (policy, policy)
        if policy in ("autoregressive", "fixed_length:draft_length=4"):
            assert lower.tokens_per_s == upper.tokens_per_s
        else:
            assert lower.tokens_per_s < upper.tokens_per_s
    assert "whole accepted draft" in low.limits[0]


def test_it_needs_a_calibration_a_temperature_and_policies_that_it_can_answer(
    trace: Path, calibration: Path, tmp_path: Path
) -> None:
    cold = Study(policies=["autoregressive"])
    with pytest.raises(ForeignTraceError, match="at which temperature"):
        explore_study(trace, tmp_path / "out", cold, latency=calibration)
    cold.conditions.temperatures.append(0.0)
    with pytest.raises(ValueError, match="name a calibration with --calibration"):
        explore_study(trace, tmp_path / "out", cold)
    cold.policies.append("saguaro:draft_length=3,fan_out=2")
    with pytest.raises(StudyError, match=r"policy saguaro.*1 best tokens apart"):
        explore_study(trace, tmp_path / "out", cold, latency=calibration)


def test_the_command_takes_a_file(
    trace: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--trace", str(trace), "--calibration", str(calibration), "--output-dir", str(tmp_path / "out")]
    policies = [argument for label in LABELS for argument in ("--policy", label)]
    assert call("explore", *places, *policies, "--temperature", "0", "--unseen", "accepted") == 0
    assert "not in this trace: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["exploration"]["limits"]

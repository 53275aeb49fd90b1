"""Whole validations on a made-up machine: its drift does not become an error of the simulator, and noise earns no claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.check.uncertainty import UNKNOWN_SPREAD, calibration_spread
from analysis.check.validate import validate
from analysis.check.validation import Validation
from sim.decoding.policies.catalog import parse_policy
from sim.latency.fitted import FittedLatency
from tests.analysis.check.noisy_machine import TESTED, SpeedPath, noisy_run, true_latency
from traces.fits.calibration import calibrate
from traces.metrics.machine_speed import machine_speed_of


@pytest.fixture(scope="module")
def latency(tmp_path_factory: pytest.TempPathFactory) -> FittedLatency:
    return true_latency(tmp_path_factory.mktemp("true") / "run")


def _validated(folder: Path, latency: FittedLatency, path: SpeedPath) -> Validation:
    """As `validate_run` does it."""
    noisy = noisy_run(folder, latency, path, num_old=16, num_new=14, seed=0)
    run = noisy.run
    machine, is_old = machine_speed_of(run.requests, run.rounds), run.requests.prompt_id.isin(noisy.old_prompts)
    old, new = (run.subset(run.requests.request_id[which]) for which in (is_old, ~is_old))
    spread = calibration_spread(old, machine, list(map(parse_policy, TESTED)), noisy.recorded)
    assert spread is not UNKNOWN_SPREAD
    assert max(spread.speedups.values()) > 0
    assert spread.speedups["autoregressive", 1.0] == 0
    known = FittedLatency(calibrate(old, machine=machine))
    return validate(new, noisy.recorded, known, machine=machine, spread=spread)


@pytest.mark.long
def test_what_the_machine_does_is_no_error_of_latencies(latency: FittedLatency, tmp_path: Path) -> None:
    found = _validated(tmp_path / "run", latency, lambda time_s: 1 + 0.3 * float(np.sin(2 * np.pi * time_s / 8)))
    assert found.drift_range is not None
    assert found.drift_range[1] / found.drift_range[0] > 1.6
    assert found.is_claim, found.note
    assert found.same_policy_difference is not None
    assert found.same_policy_difference < 0.01
    # Acceptance differs between so few prompts; given that of the very prompts measured, what is left is small.
    errors = [check.speedup_latency_error for check in found.policies if check.policy != "autoregressive"]
    assert max(abs(error or 0.0) for error in errors) < 0.015
    assert found.worst_abs_latency_error < 0.02
    assert found.interval_coverage is not None
    assert found.interval_coverage > 0.5
    assert found.rounds_identical


@pytest.mark.long
def test_a_machine_that_jumps_from_request_to_request_earns_no_claim(latency: FittedLatency, tmp_path: Path) -> None:
    speeds = np.exp(0.35 * np.random.default_rng(1).standard_normal(4096))
    found = _validated(tmp_path / "run", latency, lambda time_s: float(speeds[int(time_s * 7) % 4096]))
    assert not found.is_claim
    assert "support no claim" in found.note

"""Speeds of an exploration are those that the same runs would be measured to have."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.check.predict import predict
from analysis.explore.exploration import explore_study
from analysis.study.study import Study
from sim.decoding.policies.catalog import parse_policy
from sim.latency.fitted import FittedLatency
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import calibrate
from traces.folder.run import read_run

LABELS = ["autoregressive", "fixed_length:draft_length=3", "pearl:draft_length=4"]


@pytest.mark.parametrize("sequences_per_prompt", [1, 3])
def test_explored_speeds_are_those_of_the_simulated_runs(sequences_per_prompt: int, tmp_path: Path) -> None:
    """Also where a prompt has several sequences: predictions took medians of them once, explorations sums."""
    run = read_run(write_run(tmp_path / "run", sequences_per_prompt=sequences_per_prompt))
    explored = explore_study(run.folder, tmp_path / "explored", Study(policies=list(LABELS)), is_sensitive=False).speeds
    simulated = predict(
        [parse_policy(label) for label in LABELS], run.traces(), FittedLatency(calibrate(run)), seed=None
    )
    for one, other in zip(explored, simulated.speeds, strict=True):
        assert (one.policy, one.num_prompts, one.num_requests) == (other.policy, other.num_prompts, other.num_requests)
        assert one.tokens_per_s == pytest.approx(other.tokens_per_s, rel=1e-9)
        assert one.interval == pytest.approx(other.interval, rel=1e-9)
        assert one.speedup == pytest.approx(other.speedup, rel=1e-9)
        assert one.speedup_interval == pytest.approx(other.speedup_interval, rel=1e-9)
        assert one.tokens_per_target_forward == pytest.approx(other.tokens_per_target_forward, rel=1e-9)

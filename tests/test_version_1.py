"""Run folders and calibrations of schema version 1 stay readable, and mean what they meant.

tests/data/run_v1 was written by the code before operations had types: two held-out prompts of 24 tokens at temperature 1 on
the embedded pair, four policies with every kind of operation among them, and its calibration. It ran on a busy machine, so
its times are those of no hardware; the numbers expected below are what that old code gave.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.check.identity import compare_rounds
from analysis.check.predict import predict
from analysis.explore.exploration import explore_study
from analysis.study.study import Study
from sim.decoding.policies.catalog import parse_policy
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import Calibration, calibrate
from traces.fits.interference import Pace
from traces.folder.run import Run, read_run
from traces.metrics.machine_speed import MachineSpeed
from traces.metrics.speeds import measured_speeds

FOLDER = Path(__file__).parent / "data" / "run_v1"
ADAEDL = "adaedl:threshold=0.4,entropy_factor=0.2,max_length=4,target_rate=0.9,step=0.01,rate_memory=0.5,threshold_memory=0.9"
SPECBRANCH = (
    "specbranch:draft_length=3,max_branches=2,epsilon=0.3,uses_hrad=True,is_fixed_count=False,on_miss=serial,"
    "prior_length=0,signal=max_prob"
)
MEASURED = {
    "autoregressive": 64.23602258909703,
    "probe:max_length=4,max_branches=2": 43.75206043150882,
    SPECBRANCH: 49.786892444865586,
    ADAEDL: 70.16887965281344,
}
EXPLORED = {  # of the two that overlap since both models slow each other down only while both work
    "autoregressive": 68.23735739369917,
    "fixed_length:draft_length=3": 61.12691090764946,
    "pearl:draft_length=3": 55.871607345679195,
    SPECBRANCH: 49.156493411093805,
    ADAEDL: 68.91047133959941,
}


@pytest.fixture
def run() -> Iterator[Run]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*disturbed by other load.*")
        yield read_run(FOLDER)


def test_its_tables_are_whole(run: Run) -> None:
    assert run.is_complete
    assert len(run.requests) == 8
    assert len(run.rounds) == 128
    assert len(run.ops) == 694
    ranks, others = [trace.ranks for trace in run.traces()]
    assert ranks[5] == 2
    assert others[:7] == (4, 0, 1, 0, 32, 3, 0)
    assert [(trace.tail_depth, len(trace.class_probs), len(trace.tails)) for trace in run.traces()] == [
        (8, 25, 5),
        (8, 25, 14),
    ]
    assert [trace.chances for trace in run.traces()] == [(), ()]  # columns of schema version 3


def test_its_rounds_are_those_of_a_replay(run: Run) -> None:
    compared = compare_rounds(run)
    assert compared.is_identical
    assert compared.num_rounds == len(run.rounds)


def test_its_measured_speeds_are_the_same(run: Run) -> None:
    assert {speed.policy: speed.tokens_per_s for speed in measured_speeds(run.requests, run.rounds)} == pytest.approx(
        MEASURED, rel=1e-12
    )


def test_its_operations_calibrate_as_they_did(run: Run) -> None:
    """Every kind of operation has kept its meaning: all coefficients are the old ones, but for those of the draft, whose
    slow-down beside a verification was told otherwise."""
    old, new = Calibration.load(FOLDER / "calibration.json"), calibrate(run, seed=0, machine=MachineSpeed())
    assert set(old.fits) == {"draft", "read", "verify", "predict", "draft_prefill", "target_prefill", "host"}
    assert "8 ran beside other load" in new.doubt  # what the first version did not say
    for group, fit in old.fits.items():
        if group == "draft":
            assert new.fits[group].mean_s(1, 1, 50) == pytest.approx(fit.mean_s(1, 1, 50), rel=0.15)
            continue
        assert new.fits[group].coefficients == pytest.approx(fit.coefficients, rel=1e-9)
        assert new.fits[group].ratios == pytest.approx(fit.ratios, rel=1e-9)
    assert dataclasses.astuple(new.cold_start) == pytest.approx(dataclasses.astuple(old.cold_start), rel=1e-9)
    assert new.drafting == pytest.approx(old.drafting, rel=1e-9)
    assert old.interference.target == Pace()
    assert old.interference.draft.base == pytest.approx(1 / 1.229, rel=1e-3)


def test_its_exploration_gives_the_old_speeds(run: Run, tmp_path: Path) -> None:
    explored = explore_study(FOLDER, tmp_path / "out", Study(policies=list(EXPLORED)), is_sensitive=False)
    assert {speed.policy: speed.tokens_per_s for speed in explored.speeds} == pytest.approx(EXPLORED, rel=1e-9)


def test_its_calibration_predicts_in_the_engine(run: Run) -> None:
    latency = FittedLatency(Calibration.load(FOLDER / "calibration.json"))
    predicted = predict([parse_policy(label) for label in EXPLORED], run.traces(), latency, seed=None).speeds
    assert {speed.policy: speed.tokens_per_s for speed in predicted} == pytest.approx(EXPLORED, rel=1e-9)

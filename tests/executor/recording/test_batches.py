"""A sweep over batches: every combination is timed, and what is fitted to it is what a plan takes, on every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from executor.recording.batches import BatchGrid
from executor.recording.sweep import Grid, record_sweep
from tests.analysis.command import call
from tests.settings import record_settings
from traces.fits.batched_ops import BATCH_SWEEP, fit_batches
from traces.schema import Actor

GRID = Grid(contexts=(16,), widths=(1, 4), branch_counts=(1,), num_steps=1, num_repeats=10)
BATCHES = BatchGrid(batches=(1, 3), widths=(1, 4), contexts=(16, 40), num_repeats=3)


@pytest.mark.parametrize("engine", ["static", "hugging_face", "resident"])
def test_every_batch_is_timed_on_every_engine(engine: str, tmp_path: Path) -> None:
    settings = record_settings(engine=engine, capacity=128)
    run = record_sweep(settings, tmp_path / "sweep", GRID, batches=BATCHES)
    batched = run.requests.loc[run.requests["policy"] == BATCH_SWEEP, "request_id"]
    assert len(batched) == 2 * len(BATCHES.contexts)
    ops = run.ops[run.ops["request_id"].isin(batched)]
    counts = ops.groupby(["actor", "batch", "num_tokens", "context_tokens"]).size()
    assert len(counts) == 2 * 2 * 2 * 2
    assert set(counts) == {BATCHES.num_repeats}
    assert (run.ops.loc[~run.ops["request_id"].isin(batched), "batch"] == 1).all()
    assert (ops["end_s"] > ops["start_s"]).all()
    median_s = (
        ops.assign(seconds=ops["end_s"] - ops["start_s"]).groupby(["actor", "batch", "num_tokens"])["seconds"].min()
    )
    assert median_s[Actor.TARGET, 3, 4] > median_s[Actor.DRAFT, 1, 1]
    fitted = fit_batches(run)
    assert fitted is not None
    assert fitted.costs.target.floor_s > 0


@pytest.mark.long
def test_the_command_line_goes_from_a_sweep_to_a_plans_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("executor.recording.sweep.Grid", lambda: GRID)
    monkeypatch.setattr("executor.recording.batches.BatchGrid", lambda batches: replace(BATCHES, batches=batches))
    run = tmp_path / "sweep"
    assert call("record", "--sweep", "--sweep-batch", "1", "--sweep-batch", "4", "--output-dir", str(run)) == 0
    assert call("calibrate", "--run", str(run)) == 0
    assert "step_costs.json" in capsys.readouterr().out
    costs = ("--costs", str(run / "step_costs.json"), "--context", "100")
    assert call("advise", "--per-position", "0.7,0.5,0.3", *costs) == 0
    assert "by running requests" in capsys.readouterr().out
    assert call("record", "--sweep-batch", "4", "--output-dir", str(tmp_path / "other")) != 0
    assert call("calibrate", "--run", str(run)) != 0
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batches": ()}, "batches"),
        ({"widths": (0,)}, "widths"),
        ({"batches": (2000,)}, "1024"),
        ({"contexts": (5000,), "batches": (1024,)}, "caches"),
    ],
)
def test_grids_that_cannot_be_are_refused(changes: dict[str, tuple[int, ...]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BatchGrid(**changes)  # type: ignore[arg-type]


def test_a_sweep_that_does_not_fit_the_cache_and_a_lookup_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a capacity of 204"):
        record_sweep(
            record_settings(capacity=128), tmp_path / "long", GRID, batches=BatchGrid(widths=(4,), contexts=(200,))
        )

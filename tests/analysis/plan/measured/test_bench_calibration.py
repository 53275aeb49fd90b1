"""From a few benchmarks of a made-up server to its table: gains with honest intervals, and a next run that narrows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.plan.measured.bench_calibration import BenchCalibration, calibrate_benches
from sim.serving.rounds.base import ServerLoad
from sim.serving.rounds.length_rules import GoodputRule
from tests.analysis.command import call
from tests.analysis.plan.measured.made_up_server import ACCEPTANCE, DRAFT, TARGET, bench, measure, row_of, write_table
from traces.fits.step_costs import StepCosts, read_step_costs
from traces.importers.base import ForeignTraceError
from traces.importers.engines.records import AcceptanceRecord
from traces.importers.server_bench import ServerBench

FEW = ((0, 1), (2, 1), (2, 16))
TRUTH = StepCosts(target=TARGET, draft=DRAFT, host_s=1e-3)


def _folder(path: Path, runs: tuple[tuple[int, int], ...]) -> Path:
    path.mkdir()
    write_table(path / "benches.csv", (), ())
    head = (path / "benches.csv").read_text()
    rows = [row_of(measure(_longer(bench(*run)))) for run in runs]
    (path / "benches.csv").write_text(head + "\n".join(rows) + "\n")
    marginal = ACCEPTANCE.marginal(3)
    record = AcceptanceRecord(
        source="s", draft_length=3, mean_acceptance_length=1 + sum(marginal), marginal=marginal, num_drafts=1e5
    )
    record.write(path / "acceptance.json")
    return path


def _longer(asked: ServerBench) -> ServerBench:
    """So many requests that the luck of what is accepted hardly counts."""
    num = max(150, 4 * asked.max_concurrency)
    return replace(asked, num_requests=num, input_tokens=100.0 * num, output_tokens=40.0 * num)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> BenchCalibration:
    return calibrate_benches(_folder(tmp_path_factory.mktemp("few") / "few", FEW))


def _true_gain(calibration: BenchCalibration, batch: int, length: int) -> float:
    rule = GoodputRule(TRUTH, ACCEPTANCE.marginal(length), joining=calibration.served.joining)
    return rule.gain(ServerLoad.alike(batch, calibration.served.mean_context), length) - 1


def test_intervals_of_gains_hold_the_truth_and_widen_where_nothing_was_measured(few: BenchCalibration) -> None:
    widths = {}
    for batch in (1, 4, 16, 64, 256):
        low, high = few.served.interval(batch, 2) or (0.0, 0.0)
        assert low < few.served.gain(batch, 2) < high
        assert low - 0.03 <= _true_gain(few, batch, 2) <= high + 0.03, batch
        widths[batch] = high - low
    assert widths[256] > 1.5 * widths[1]


def test_the_next_run_narrows_more_than_others(few: BenchCalibration, tmp_path: Path) -> None:
    told = few.next_run
    assert told is not None
    assert (told.draft_length, told.max_concurrency) not in FEW
    assert told.after < 0.8 * told.before
    assert told.max_concurrency > 16  # nothing was measured there
    made = calibrate_benches(_folder(tmp_path / "more", (*FEW, (told.draft_length, told.max_concurrency))))
    assert made.next_run is not None
    assert made.next_run.before < 0.9 * told.before


def test_the_command_writes_files_with_intervals_and_a_replay_that_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path / "benches", FEW)
    assert call("calibrate", "--bench", str(folder)) == 0
    told = capsys.readouterr().out
    assert "The run that would narrow this most: K = " in told
    assert max(len(line) for line in told.splitlines() if " to " in line and line.endswith("%]")) <= 80
    out = folder / "calibrated"
    assert read_step_costs(out / "step_costs.json").draft is not None
    assert "95%" in (out / "engines.md").read_text()
    rows = json.loads((out / "summary.json").read_text())["bench_calibration"]["rows"]
    assert rows[0]["first"] == 1
    assert rows[0]["gain_first_95"][0] < rows[0]["gain_first"] < rows[0]["gain_first_95"][1]
    script = (out / "replay.sh").read_text()
    asked = json.loads((out / "replay.json").read_text())
    assert script.count("vllm bench serve ") == len(asked) >= 2

    results = []
    for run in asked:  # what a server would give that is 10% slower
        num = run["num_requests"]
        duration = 1.1 * num * run["output_tokens"] / run["output_tokens_per_s"]
        results.append(
            {
                "backend": "vllm", "model_id": "m", "num_prompts": num, "completed": num, "request_rate": "inf",
                "max_concurrency": run["max_concurrency"], "duration": duration,
                "total_input_tokens": num * run["prompt_tokens"], "total_output_tokens": num * run["output_tokens"],
                "output_throughput": run["output_tokens_per_s"] / 1.1, "mean_tpot_ms": 1100 * run["mean_tpot_s"],
                "mean_ttft_ms": 1000 * run["median_ttft_s"], "median_ttft_ms": 1000 * run["median_ttft_s"],
            }
        )  # fmt: skip
    back = tmp_path / "back.jsonl"
    back.write_text("\n".join(map(json.dumps, results)))
    compare = ("import", str(back), "--replay", str(out / "replay.json"), "--output-dir")
    assert call(*compare, str(tmp_path / "compared")) == 0
    told = capsys.readouterr().out
    assert (
        f"{len(asked)} benchmarks of the replay: predicted tokens/s are 10.0% off in the mean and 10.0% at worst"
        in told
    )
    compared = json.loads((tmp_path / "compared" / "replay-compared.json").read_text())
    assert [round(row["mean_tpot_s_error"], 3) for row in compared] == [round(1 / 1.1 - 1, 3)] * len(asked)

    results[0]["total_output_tokens"] *= 2
    results[0]["output_throughput"] *= 2
    back.write_text("\n".join(map(json.dumps, results)))
    assert call(*compare, str(tmp_path / "other")) != 0
    assert "were asked for" in capsys.readouterr().err
    (out / "replay.json").write_text('[{"max_concurrency": 1}]')
    assert call(*compare, str(tmp_path / "third")) != 0
    assert "does not hold a replay" in capsys.readouterr().err


def test_draws_have_the_covariance_of_the_fit(few: BenchCalibration) -> None:
    steps, rng = few.server.steps, np.random.default_rng(3)
    floors = np.array([steps.drawn(rng).target.floor_s for _ in range(2000)])
    low, high = steps.intervals["target.floor_s"]
    assert np.std(np.log(floors)) == pytest.approx(np.log(high / low) / (2 * 1.96), rel=0.1)
    assert np.median(floors) == pytest.approx(steps.target.floor_s, rel=0.01)


def test_too_few_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignTraceError, match="2 benchmarks with 1 drafts"):
        calibrate_benches(_folder(tmp_path / "two", FEW[:2]))
    with pytest.raises(ForeignTraceError, match="with 0 drafts"):
        calibrate_benches(_folder(tmp_path / "none", ((0, 1), (0, 4), (0, 16))))
    assert call("calibrate") != 0

"""Exploring gives the engine's answers, goes on after a kill, and says how sure it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.explore.exploration import Exploration, explore_run, explore_study
from analysis.explore.search import pareto_front, search_with_optuna
from analysis.explore.simulation import simulate_run
from analysis.explore.work.evaluation import Timing, Workload, evaluate, speeds_under
from analysis.study.questions import make_questions, traces_of
from analysis.study.study import Conditions, Family, Objective, Range, Search, Study, StudyError, make_study
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.engine import simulate, summarise
from sim.latency.fitted import FittedLatency
from sim.latency.placement import Placement, PlacementKind, adjusted
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import Calibration, calibrate
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference, Pace
from traces.folder.run import read_run

LABELS = [
    "autoregressive",
    "fixed_length:draft_length=3",
    "pearl:draft_length=4",
    "confidence_stop:threshold=0.5,max_length=5",
    "saguaro:draft_length=3,fan_out=2",
    "specbranch:draft_length=4,max_branches=4,epsilon=0.3,uses_hrad=False",
    "outcome_hedging:draft_length=4,max_branches=4",
]
POLICIES = list(map(parse_policy, LABELS))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("made-up") / "run")
    calibrate(read_run(folder)).save(folder / "calibration.json")
    return folder


@pytest.fixture(scope="module")
def calibration(run_dir: Path) -> Calibration:
    return Calibration.load(run_dir / "calibration.json")


@pytest.fixture(scope="module")
def dear_calibration(calibration: Calibration) -> Calibration:
    """Reading signals, cold starts and a draft at work beside the target all cost something."""
    fits = {**calibration.fits, "read": calibration.fits["draft"]}
    return replace(
        calibration,
        fits=fits,
        cold_start=ColdStart(first_s=0.0004, decay=0.3, full_s=0.006),
        interference=Interference(target=Pace(0.7, -0.02), draft=Pace(0.8, 0.0, -0.05)),
    )


GRID = Study(
    policies=[
        "autoregressive",
        Family(method="fixed_length", settings={"draft_length": Range(first=1, last=8)}),
        Family(
            method="specbranch",
            settings={
                "draft_length": Range(first=2, last=8),
                "max_branches": [1, 2, 4, 8],
                "epsilon": Range(first=0.1, last=0.8, step=0.1),
                "uses_hrad": [False],
                "signal": ["max_prob", "margin"],
            },
        ),
    ],
    objectives=[Objective.SPEED],
    policies_per_task=64,
)


@pytest.fixture(scope="module")
def grid(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    return explore_study(run_dir, tmp_path_factory.mktemp("grid") / "out", GRID, is_sensitive=False)


def test_every_method_is_timed_as_by_the_engine(run_dir: Path, calibration: Calibration) -> None:
    traces = tuple(read_run(run_dir).traces())
    found = evaluate(Workload(traces=traces, latency=FittedLatency(calibration), timings=(Timing(),)), POLICIES)
    for row, label in enumerate(LABELS):
        run = summarise(simulate(parse_policy(label), traces, FittedLatency(calibration), record_ops=False))
        assert found.seconds["decode_s"][0, row].sum() == pytest.approx(run.decode_s, rel=1e-9)
        assert found.counts["num_lost"][row].sum() == run.num_lost
        assert found.counts["num_draft_forwards"][row].sum() == run.num_draft_forwards


@pytest.mark.parametrize(
    "timing",
    [
        Timing(),
        Timing(cost_ratio=12.0),
        Timing(Placement(link_latency_s=0.003)),
        Timing(Placement(kind=PlacementKind.SHARED_DEVICE, interference=2.0)),
    ],
)
def test_scenarios_are_timed_as_by_the_engine(run_dir: Path, dear_calibration: Calibration, timing: Timing) -> None:
    traces = tuple(read_run(run_dir).traces())
    found = evaluate(
        Workload(traces=traces, latency=FittedLatency(dear_calibration), timings=(Timing(), timing)), POLICIES
    )
    context = int(sum(trace.num_prompt_tokens + trace.num_tokens / 2 for trace in traces) / len(traces))
    for row, label in enumerate(LABELS):
        policy = parse_policy(label)
        latency = adjusted(
            FittedLatency(dear_calibration),
            timing.placement,
            cost_ratio=timing.cost_ratio,
            context_tokens=context,
            drafts=policy.needs.drafts,
        )
        run = summarise(simulate(policy, traces, latency, interference=timing.placement.shared, record_ops=False))
        assert found.seconds["decode_s"][1, row].sum() == pytest.approx(run.decode_s, rel=1e-9), label


def test_no_digit_hangs_on_how_rounds_are_grouped(
    run_dir: Path, dear_calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = (Timing(), Timing(cost_ratio=7.0), Timing(Placement(kind=PlacementKind.SHARED_DEVICE, interference=1.5)))
    traces = tuple(read_run(run_dir).traces())
    workload = Workload(traces=traces, latency=FittedLatency(dear_calibration), timings=timings)
    whole = evaluate(workload, POLICIES)
    for module in ("sim.sweep.sweep", "analysis.explore.work.evaluation"):
        monkeypatch.setattr(f"{module}.ROUNDS_AT_ONCE", 7)
    pieces = evaluate(workload, POLICIES)
    for name, seconds in whole.seconds.items():
        np.testing.assert_array_equal(pieces.seconds[name], seconds)


def test_moved_parameters_are_timed_as_by_the_engine(run_dir: Path, dear_calibration: Calibration) -> None:
    traces = tuple(read_run(run_dir).traces())
    workload = Workload(traces=traces, latency=FittedLatency(dear_calibration), timings=(Timing(),))
    moved = replace(dear_calibration, interference=Interference.of(1.7), cold_start=ColdStart(first_s=0.001))
    speeds = speeds_under(workload, Timing(), POLICIES, [FittedLatency(dear_calibration), FittedLatency(moved)])
    for calibration, row in zip((dear_calibration, moved), speeds, strict=True):
        for label, speed in zip(LABELS, row, strict=True):
            run = summarise(simulate(parse_policy(label), traces, FittedLatency(calibration), record_ops=False))
            assert speed == pytest.approx(run.decode_tokens_per_s, rel=1e-9), label


def test_drawn_latencies_are_shared_by_policies_and_placements(run_dir: Path, calibration: Calibration) -> None:
    calibration = replace(calibration, interference=Interference())
    traces = tuple(read_run(run_dir).traces())
    shared = Timing(Placement(kind=PlacementKind.SHARED_DEVICE, interference=1.0))
    workload = Workload(traces=traces, latency=FittedLatency(calibration), timings=(Timing(), shared), seed=3)
    found = evaluate(workload, POLICIES[:3])
    np.testing.assert_array_equal(found.seconds["decode_s"][0], found.seconds["decode_s"][1])
    np.testing.assert_array_equal(
        evaluate(workload, POLICIES[1:2]).seconds["decode_s"][0, 0], found.seconds["decode_s"][0, 1]
    )


def test_a_study_writes_its_answers(run_dir: Path, tmp_path: Path) -> None:
    study = Study(
        policies=list(LABELS),
        conditions=Conditions(
            interference=[1.3],
            link_latency_s=[0.0, 0.002],
            cost_ratios=["measured", 10.0],
            alignments=["recorded", "markov:alpha=0.8"],
        ),
        objectives=list(Objective),
    )
    reported: list[tuple[int, int]] = []
    found = explore_study(run_dir, tmp_path / "out", study, progress=lambda done, total: reported.append((done, total)))
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["exploration"]
    assert len(table) == len(LABELS) * 3 * 2 * 2 == len(found.speeds)
    assert (told["num_policies"], told["num_tokens"]) == (len(LABELS), 12 * 60)
    assert told["wall_s"] > 0
    assert told["best"]["tokens_per_s"] == table.tokens_per_s.max()
    assert {row["scenario"] for row in told["pareto"]} == set(table.scenario)
    assert reported[-1][0] == reported[-1][1]
    assert not (tmp_path / "out.partial").exists()
    assert told["acceptance"][0]["models"][0]["name"] == "geometric (i.i.d.)"
    assert (table.low <= table.tokens_per_s).all()
    assert (table.tokens_per_s <= table.high).all()
    assert table.groupby("scenario").probability_best.sum().to_numpy() == pytest.approx(1.0)
    at_base = table[table.scenario == "T=1 two_devices"].set_index("policy").tokens_per_s
    far = table[table.scenario == "T=1 two_devices:link_latency_s=0.002"].set_index("policy").tokens_per_s
    assert far["autoregressive"] == at_base["autoregressive"]  # it crosses no link
    assert (far.drop("autoregressive") < at_base.drop("autoregressive")).all()
    assert found.effects[0].regret >= found.effects[-1].regret >= 0


def test_the_first_place_is_as_sure_as_the_prompts_allow(grid: Exploration) -> None:
    (ranking,) = grid.rankings.values()
    assert 0 < ranking.probability_best <= 1
    assert 0 <= ranking.expected_regret < 0.02
    assert ranking.gain_interval is not None
    assert ranking.gain is not None
    assert ranking.gain_interval[0] <= ranking.gain <= ranking.gain_interval[1]


@pytest.mark.long
def test_optuna_comes_within_a_percent_of_the_grid(run_dir: Path, tmp_path: Path, grid: Exploration) -> None:
    assert grid.num_policies == 457
    study = replace(GRID, search=Search(kind="tpe", trials=200))
    found = explore_study(run_dir, tmp_path / "out", study, is_sensitive=False)
    assert found.num_policies == 200
    best, exhaustive = found.best(1)[0].tokens_per_s, grid.best(1)[0].tokens_per_s
    assert best >= 0.99 * exhaustive, f"Optuna's best is {1 - best / exhaustive:.2%} below the grid's."
    assert {speed.policy: speed.tokens_per_s for speed in found.speeds}.items() <= {
        speed.policy: speed.tokens_per_s for speed in grid.speeds
    }.items()


def test_optuna_searches_real_policies_for_several_objectives(run_dir: Path, tmp_path: Path) -> None:
    """The front that a search finds is no better than the grid's, and holds its fastest policy or nearly."""
    study = replace(GRID, objectives=[Objective.SPEED, Objective.ENERGY, Objective.MEMORY])
    whole = explore_study(run_dir, tmp_path / "whole", study, is_sensitive=False)
    searched = replace(study, search=Search(kind="nsga2", trials=120))
    found = explore_study(run_dir, tmp_path / "found", searched, is_sensitive=False)
    assert found.num_policies == 120
    columns = [f"objective_{objective}" for objective in study.objectives]
    values = whole.table.set_index("policy")[columns]
    for policy, row in found.table.set_index("policy")[columns].iterrows():
        assert row.tolist() == values.loc[str(policy)].tolist(), "a searched policy is worth what the grid says"
    assert found.pareto().tokens_per_s.max() >= 0.97 * whole.pareto().tokens_per_s.max()
    assert set(found.pareto().policy) & set(whole.pareto().policy)


def test_optuna_with_several_objectives_repeats_itself_exactly() -> None:
    family = Family(method="fixed_length", settings={"draft_length": Range(first=1, last=30)})

    def search(kind: str) -> dict[Policy, tuple[float, ...]]:
        def values(policies: list[FixedLength]) -> list[tuple[float, float]]:
            return [(-((policy.draft_length - 11) ** 2), policy.draft_length) for policy in policies]

        return search_with_optuna(
            [family],
            values,
            [Objective.SPEED, Objective.MEMORY],
            kind=kind,
            trials=20,
            batch=5,
            seed=1,  # type: ignore[arg-type]
        )

    for kind in ("tpe", "nsga2"):
        first = search(kind)
        assert list(first.items()) == list(search(kind).items())
        assert 5 <= len(first) <= 20


def test_the_pareto_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((60, 3)).round(1)
    found = pareto_front(values, [Objective.SPEED, Objective.ROLLBACK, Objective.MEMORY])
    costs = values * np.array([-1, 1, 1])
    for row, cost in enumerate(costs):
        is_beaten = any((other <= cost).all() and (other < cost).any() for other in costs)
        assert found[row] == (not is_beaten)


@pytest.mark.long
def test_a_killed_exploration_goes_on_and_gives_the_same(run_dir: Path, tmp_path: Path) -> None:
    study = {
        "policies": [
            {
                "method": "outcome_hedging",
                "settings": {"draft_length": {"first": 2, "last": 10}, "max_branches": [2, 4, 8]},
            }
        ],
        "policies_per_task": 1,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    command = [
        sys.executable,
        "-m",
        "analysis.cli.main",
        "explore",
        "--study",
        str(tmp_path / "study.yaml"),
        "--trace",
        str(run_dir),
    ]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--output-dir", str(killed)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
    )
    partial = tmp_path / "killed.partial"
    waited_until = time.monotonic() + 60
    while len(list(partial.glob("*.npz"))) < 3 and process.poll() is None:
        assert time.monotonic() < waited_until, "no task was finished within a minute."
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists(), "the exploration ended before it could be killed; give it more to do."
    assert not killed.exists()

    resumed = explore_study(run_dir, killed, make_study(study))
    whole = explore_study(run_dir, tmp_path / "whole", make_study(study))
    assert resumed.num_reused_tasks >= 3
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)


def test_unfinished_results_of_another_study_are_not_mixed_in(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "question.json").write_text('{"sha256": "another"}')
    with pytest.raises(ValueError, match="another study, run or calibration"):
        explore_study(run_dir, tmp_path / "out", make_study({"policies": ["pearl"]}))


def test_finished_results_are_not_overwritten(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="never overwritten"):
        explore_study(run_dir, tmp_path, make_study({"policies": ["pearl"]}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policies": ["confidence_stop:max_length=20"]}, "record with --tail-depth 19"),
        ({"policies": ["specbranch:draft_length=4"]}, "no H-RAD classes"),
        ({"policies": ["pearl"], "conditions": {"temperatures": [0.5]}}, "no trace at temperature 0.5, only at 1"),
    ],
)
def test_what_the_trace_cannot_answer_is_refused_before_any_work(
    run_dir: Path, tmp_path: Path, settings: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.explore.exploration.latency_of", lambda run, source: pytest.fail("work has started."))
    with pytest.raises(StudyError) as caught:
        explore_study(run_dir, tmp_path / "out", make_study(settings))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


def test_a_lookup_is_not_asked_about_on_a_models_trace(run_dir: Path, tmp_path: Path) -> None:
    label = "prompt_lookup:max_length=4"
    of_a_model, of_a_lookup = tmp_path / "model", tmp_path / "lookup"
    for folder, draft in ((of_a_model, "embedded"), (of_a_lookup, "prompt_lookup:max_ngram=2")):
        shutil.copytree(run_dir, folder)
        config = {**read_run(run_dir).config, "draft": draft}
        (folder / "config.yaml").write_text(json.dumps(config))
    study = make_study({"policies": [label]})
    with pytest.raises(
        StudyError, match=f"policy {label}: .* the draft is embedded; record with --draft prompt_lookup"
    ):
        explore_study(of_a_model, tmp_path / "out", study)
    with pytest.raises(ValueError, match="the draft is embedded; record with --draft prompt_lookup"):
        simulate_run(of_a_model, tmp_path / "simulated", [Autoregressive(), parse_policy(label)])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "simulated").exists()
    simulated = simulate_run(of_a_lookup, tmp_path / "simulated", [Autoregressive(), parse_policy(label)]).speeds
    explored = explore_study(of_a_lookup, tmp_path / "out", study)
    assert "draft" not in read_run(run_dir).config  # no model made it: nothing is refused
    assert simulate_run(run_dir, tmp_path / "made-up", [parse_policy(label)]).speeds[0].policy == label
    assert explored.best_at(1.0, ["prompt_lookup"]).policy == label == simulated[1].policy


def test_policies_alone_make_an_exploration(run_dir: Path, tmp_path: Path) -> None:
    found = explore_run(run_dir, tmp_path / "out", POLICIES[:4])
    assert found.best_at(1.0, ["pearl"]).policy == "pearl:draft_length=4"
    assert found.best(1)[0].tokens_per_s == max(speed.tokens_per_s for speed in found.speeds)


def test_measured_settings_come_from_the_trace(run_dir: Path, calibration: Calibration) -> None:
    study = Study(policies=[Family(method="outcome_hedging", settings={"max_branches": [4, 8]}, is_measured=True)])
    traces = traces_of(read_run(run_dir).traces(), study, where="run")
    (question,) = make_questions(traces, FittedLatency(calibration), study)
    least_reach = question.policies[0].least_reach  # type: ignore[attr-defined]
    assert least_reach == pytest.approx(1.5 * 0.02 / 1.02, rel=0.2)  # a further token adds 2% to a verification
    assert len(question.policies) == 2

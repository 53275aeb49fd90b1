"""Many policies on the simulator: which is best for this pair on this hardware, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.explore.inputs import LatencySource, doubt_of_latency, latency_of, open_recording, write_latency
from analysis.explore.outcomes import Ranking, answer, rank
from analysis.explore.sensitivity import ParameterEffect
from analysis.explore.work.evaluation import evaluate_packed
from analysis.explore.work.scale_out import Workers, starting
from analysis.explore.work.task_store import TaskStore
from analysis.explore.work.tasks import Tasks
from analysis.study.questions import Question, make_questions, traces_of
from analysis.study.study import Conditions, Study
from executor.recording.settings import draft_of
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.latency.base import LatencyModel
from traces.files import write_frame
from traces.fits.acceptance.fit import MIN_REQUESTS, AcceptanceReport, assess_acceptance
from traces.folder.writer import RunWriter
from traces.importers.base import ImportedTraces
from traces.importers.unseen import Unseen
from traces.metrics.speeds import Speed, speeds_summary
from traces.progress import Report, silent
from traces.schema import num_tokens

LATENCIES = "calibration.json"  # beside the results: the latencies that they follow from


@dataclass(frozen=True)
class Exploration:
    """Predicted speeds of many policies. wall_s: seconds that the search took, reading and calibrating included.

    speeds: of every policy in every scenario; `table` has the same rows with their scenario and objectives. rankings:
    how sure the first place is, by scenario. effects: of the latency model's numbers, in the first scenario. acceptance:
    which models the traces reject, when the study asks for other alignments than the recorded one. limits: what a foreign
    trace cannot answer, in sentences. doubt: why the latencies, and so all of this, support no claim about speed.
    """

    speeds: list[Speed]
    num_policies: int
    num_tokens: int
    wall_s: float
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    effects: Sequence[ParameterEffect] = ()
    acceptance: Sequence[AcceptanceReport] = ()
    num_reused_tasks: int = 0
    limits: Sequence[str] = ()
    doubt: str = ""

    def best(self, count: int) -> list[Speed]:
        """The fastest ones, best first, over all temperatures and scenarios."""
        return sorted(self.speeds, key=lambda speed: -speed.tokens_per_s)[:count]

    def best_at(self, temperature: float, methods: Sequence[str] | None = None) -> Speed:
        """The fastest policy at one temperature, among the methods named."""
        here = [
            speed
            for speed in self.speeds
            if speed.temperature == temperature and (methods is None or speed.policy.partition(":")[0] in methods)
        ]
        return max(here, key=lambda speed: speed.tokens_per_s)

    def pareto(self, scenario: str | None = None) -> pd.DataFrame:
        """Rows of the table on the Pareto front of one scenario, or of each, fastest first."""
        front = self.table[self.table.is_pareto]
        front = front if scenario is None else front[front.scenario == scenario]
        return front.sort_values("tokens_per_s", ascending=False)


def explore_run(
    run_dir: Path,
    output_dir: Path,
    policies: Sequence[Policy],
    *,
    latency: LatencySource = None,
    temperatures: Sequence[float] | None = None,
    seed: int = 0,
) -> Exploration:
    """Predict every policy on a run's traces, with drawn latencies; writes a new folder as `explore_study` does."""
    conditions = Conditions(temperatures=list(temperatures or ()))
    study = Study(policies=list(map(label_of, policies)), conditions=conditions, latency="drawn", seed=seed)
    return explore_study(run_dir, output_dir, study, latency=latency, is_sensitive=False)


def explore_study(
    run_dir: Path | None,
    output_dir: Path,
    study: Study,
    *,
    latency: LatencySource = None,
    unseen: Unseen = Unseen.REJECTED,
    workers: Workers | None = None,
    is_sensitive: bool = True,
    progress: Report = silent,
) -> Exploration:
    """Answer a study from a run folder, from a foreign trace and a calibration, or (None) from laws and a calibration alone.

    Writes results.parquet (a row for each policy and scenario), sensitivity.parquet, calibration.json (the latencies that
    were used) and summary.json to a new folder; a killed run goes on from OUTPUT.partial when called again.

    latency: a model, a file of one, or None for the run's own calibration. unseen: what to take for outcomes that a foreign
    trace does not know. is_sensitive: whether to move every number of the latency model and choose again.
    StudyError for a study that the run cannot answer, ValueError for a folder that holds something.
    """
    started = time.perf_counter()
    workers = workers or Workers()
    asked = study.conditions
    run = open_recording(run_dir, temperatures=asked.temperatures, unseen=unseen, alignments=asked.alignments)
    traces = traces_of(run.traces(), study, where=str(run_dir or "a law"), draft=draft_of(run.config))
    with starting(evaluate_packed, workers) as wait:
        model = latency_of(run, latency)
        questions = make_questions(traces, model, study)
        for question in questions:
            question.packed()
        wait()
    store = TaskStore(output_dir, "\n".join([study.fingerprint(), *(question.digest() for question in questions)]))
    results = Tasks(questions, study, store, workers, progress).search_all()
    answers = [
        answer(question, evaluated, baseline, timing, study)
        for question, evaluated, baseline in results
        for timing in range(len(question.workload.timings))
    ]
    explored = Exploration(
        speeds=[speed for each in answers for speed in each.scored.speeds],
        num_policies=len({policy for _, evaluated, _ in results for policy in evaluated.policies}),
        num_tokens=sum({question.temperature: num_tokens(question.recorded) for question in questions}.values()),
        wall_s=time.perf_counter() - started,
        table=pd.concat([each.table(study.objectives) for each in answers], ignore_index=True),
        rankings={each.scenario: rank(each.scored) for each in answers},
        effects=answers[0].effects() if is_sensitive else (),
        acceptance=() if run_dir is None else _assess(questions),
        num_reused_tasks=store.num_reused,
        limits=run.limits if isinstance(run, ImportedTraces) else (),
        doubt=doubt_of_latency(model),
    )
    config = {"run": str(run_dir or ""), "calibration": "", "study": study.as_dict()}
    if latency is not None:
        config["calibration" if isinstance(latency, Path) else "latency"] = str(latency)
    if isinstance(run, ImportedTraces):
        config["unseen"] = unseen.value
    _write(explored, output_dir, config, workers, model)
    store.discard()
    return explored


def _write(
    explored: Exploration, output_dir: Path, config: Mapping[str, Any], workers: Workers, latency: LatencyModel
) -> None:
    with RunWriter(output_dir, config=config, meta={"kind": "explored", "workers": asdict(workers)}) as writer:
        write_frame(output_dir / "results.parquet", explored.table)
        write_latency(latency, output_dir / LATENCIES)
        if explored.effects:
            effects = pd.DataFrame([asdict(effect) for effect in explored.effects])
            write_frame(output_dir / "sensitivity.parquet", effects)
        writer.finish({"exploration": summary_of(explored)})


def summary_of(explored: Exploration) -> dict[str, Any]:
    """What summary.json holds of an exploration."""
    table = explored.table
    best = table.iloc[int(table.tokens_per_s.argmax())]
    columns = [
        "scenario",
        "policy",
        "tokens_per_s",
        "speedup",
        *[c for c in table.columns if c.startswith("objective_")],
    ]
    return {
        "num_policies": explored.num_policies,
        "num_scenarios": int(table.scenario.nunique()),
        "num_tokens": explored.num_tokens,
        "wall_s": explored.wall_s,
        "num_reused_tasks": explored.num_reused_tasks,
        "best": {**speeds_summary(explored.best(1))[0], "scenario": str(best.scenario)},
        "best_by_scenario": [
            {"scenario": scenario, **asdict(ranking)} for scenario, ranking in explored.rankings.items()
        ],
        "pareto": explored.pareto()[columns].to_dict("records"),
        "acceptance": [
            {
                "temperature": report.temperature,
                "rejected": report.rejected,
                "models": [asdict(m) for m in report.models],
            }
            for report in explored.acceptance
        ],
        "limits": list(explored.limits),
        "doubt": explored.doubt,
        "sensitivity": [{**asdict(effect), "flips": effect.flips} for effect in explored.effects[:10]],
    }


def _assess(questions: Sequence[Question]) -> list[AcceptanceReport]:
    """Acceptance models against the recorded traces, where a study leaves these."""
    recorded = {question.temperature: question.recorded for question in questions if question.alignment != "recorded"}
    return [assess_acceptance(traces) for traces in recorded.values() if len(traces) >= MIN_REQUESTS]

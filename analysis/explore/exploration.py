"""Many policies on the simulator: which is best for this pair on this hardware, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.explore.evaluation import Evaluated, Timing, evaluate_packed
from analysis.explore.outcomes import Ranking, Scored, merge, rank, score
from analysis.explore.scale_out import Workers, run_tasks, starting
from analysis.explore.search import pareto_front, search_with_optuna
from analysis.explore.sensitivity import ParameterEffect, parameter_effects
from analysis.explore.simulation import load_calibration, open_recording
from analysis.explore.task_store import TaskStore
from analysis.study.questions import Question, make_questions, traces_of
from analysis.study.study import Conditions, Study
from executor.recording.settings import draft_of
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from traces.fits.acceptance.fit import LEAST_REQUESTS, AcceptanceReport, assess_acceptance
from traces.folder.writer import RunWriter
from traces.importers.base import ImportedTraces, Unseen
from traces.metrics.speeds import Speed, speeds_summary
from traces.progress import Report, silent
from traces.schema import num_tokens

BASELINE = "autoregressive"


@dataclass(frozen=True)
class Exploration:
    """Predicted speeds of many policies. wall_s: seconds that the search took, reading and calibrating included.

    speeds: of every policy in every scenario; `table` has the same rows with their scenario and objectives. rankings:
    how sure the first place is, by scenario. effects: of the fitted parameters, in the first scenario. acceptance:
    which models the traces reject, when the study asks for other alignments than the recorded one. limits: what a foreign
    trace cannot answer, in sentences.
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
    calibration: Path | None = None,
    temperatures: Sequence[float] | None = None,
    seed: int = 0,
) -> Exploration:
    """Predict every policy on a run's traces, with drawn latencies; writes a new folder as `explore_study` does."""
    conditions = Conditions(temperatures=list(temperatures or ()))
    study = Study(policies=list(map(label_of, policies)), conditions=conditions, latency="drawn", seed=seed)
    return explore_study(run_dir, output_dir, study, calibration=calibration, is_sensitive=False)


def explore_study(
    run_dir: Path,
    output_dir: Path,
    study: Study,
    *,
    calibration: Path | None = None,
    unseen: Unseen = Unseen.REJECTED,
    workers: Workers | None = None,
    is_sensitive: bool = True,
    progress: Report = silent,
) -> Exploration:
    """Answer a study from a run folder, or from a foreign trace and a calibration.

    Writes results.parquet (a row for each policy and scenario), sensitivity.parquet and summary.json to a new folder; a killed
    run goes on from OUTPUT.partial when called again.

    unseen: what to take for outcomes that a foreign trace does not know. is_sensitive: whether to move every fitted parameter
    and choose again.
    """
    started = time.perf_counter()
    workers = workers or Workers()
    run = open_recording(run_dir, temperatures=study.conditions.temperatures, unseen=unseen)
    traces = traces_of(run.traces(), study, where=str(run_dir), draft=draft_of(run.config))
    with starting(evaluate_packed, workers) as wait:
        questions = make_questions(traces, load_calibration(run, calibration), study)
        for question in questions:
            question.packed()
        wait()
    store = TaskStore(output_dir, "\n".join([study.fingerprint(), *(question.digest() for question in questions)]))

    tasks = _Tasks(questions, study, store, workers, progress)
    found = tasks.search_all()
    scored = [
        (question, timing, result)
        for question, evaluated, baseline in found
        for timing, result in _score_all(question, evaluated, baseline, study)
    ]
    table = pd.concat(
        [_table(question, timing, result, study) for question, timing, result in scored], ignore_index=True
    )
    rankings = {question.scenario(timing): rank(result) for question, timing, result in scored}
    effects: list[ParameterEffect] = []
    if is_sensitive:
        question, timing, result = scored[0]
        order = np.argsort([-speed.tokens_per_s for speed in result.speeds])
        effects = parameter_effects(
            question.workload, timing, [result.labels[row] for row in order], result.labels[result.best]
        )
    explored = Exploration(
        speeds=[speed for _, _, result in scored for speed in result.speeds],
        num_policies=len({label for _, evaluated, _ in found for label in evaluated.labels}),
        num_tokens=sum({question.temperature: num_tokens(question.recorded) for question in questions}.values()),
        wall_s=time.perf_counter() - started,
        table=table,
        rankings=rankings,
        effects=effects,
        acceptance=_assess(questions),
        num_reused_tasks=store.num_reused,
        limits=run.limits if isinstance(run, ImportedTraces) else (),
    )
    config = {"run": str(run_dir), "calibration": str(calibration or ""), "study": study.as_dict()}
    if isinstance(run, ImportedTraces):
        config["unseen"] = unseen.value
    with RunWriter(output_dir, config=config, meta={"kind": "explored", "workers": asdict(workers)}) as writer:
        table.to_parquet(output_dir / "results.parquet")
        if effects:
            pd.DataFrame([asdict(effect) for effect in effects]).to_parquet(output_dir / "sensitivity.parquet")
        writer.finish({"exploration": summary_of(explored)})
    store.discard()
    return explored


def summary_of(explored: Exploration) -> dict[str, Any]:
    """What summary.json tells of an exploration."""
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
        "sensitivity": [{**asdict(effect), "flips": effect.flips} for effect in explored.effects[:10]],
    }


@dataclass
class _Tasks:
    """Runs the tasks of all questions: what was stored is taken, the rest is worked out and stored."""

    questions: Sequence[Question]
    study: Study
    store: TaskStore
    workers: Workers
    progress: Report
    num_done: int = 0
    num_total: int = 0

    def search_all(self) -> list[tuple[Question, Evaluated, Evaluated]]:
        """Each question with its policies and the baseline."""
        search = self.study.search
        grids = [question.labels for question in self.questions]
        sizes = [len(grid) if search.kind == "grid" else min(search.trials, len(grid)) for grid in grids]
        self.num_total = sum(sizes) + len(self.questions)
        if search.kind == "grid":
            work = [(index, part) for index, grid in enumerate(grids) for part in (*self._split(grid), (BASELINE,))]
            done = self.evaluate(work)
            found = []
            for index, question in enumerate(self.questions):
                *parts, baseline = [part for (of, _), part in zip(work, done, strict=True) if of == index]
                found.append((question, merge(parts), baseline))
            return found
        return [self._search(index, question) for index, question in enumerate(self.questions)]

    def evaluate(self, work: Sequence[tuple[int, tuple[str, ...]]]) -> list[Evaluated]:
        """Results of (question, labels), in order."""
        results = [self.store.load(index, labels) for index, labels in work]
        for result in results:
            self._report(len(result.labels) if result else 0)
        missing = [position for position, result in enumerate(results) if result is None]
        tasks = [(self.questions[work[position][0]].packed(), work[position][1]) for position in missing]
        for number, result in run_tasks(evaluate_packed, tasks, self.workers):
            position = missing[number]
            self.store.save(work[position][0], result)
            results[position] = result
            self._report(len(result.labels))
        return [result for result in results if result is not None]

    def _search(self, index: int, question: Question) -> tuple[Question, Evaluated, Evaluated]:
        """Optuna; the objectives that steer are those of the first timing."""
        (baseline,) = self.evaluate([(index, (BASELINE,))])
        parts: list[Evaluated] = []

        def values(labels: Sequence[str]) -> list[tuple[float, ...]]:
            size = max(1, min(self.study.policies_per_task, self.study.search.batch // 4))
            split = [tuple(labels[start : start + size]) for start in range(0, len(labels), size)]
            done = self.evaluate([(index, part) for part in split])
            parts.extend(done)
            scored = _scored(question, merge(done), baseline, 0, self.study)
            return [tuple(row) for row in scored.objectives.tolist()]

        search = self.study.search
        assert search.kind != "grid"
        search_with_optuna(
            self.study.families(),
            values,
            self.study.objectives,
            kind=search.kind,
            trials=search.trials,
            batch=search.batch,
            seed=self.study.seed,
            measured=question.measured,
        )
        return question, merge(parts), baseline

    def _split(self, labels: Sequence[str]) -> list[tuple[str, ...]]:
        """Tasks of a grid. They do not depend on the number of workers, and neighbours in the grid share one: policies
        of one method step together."""
        size = self.study.policies_per_task
        return [tuple(labels[start : start + size]) for start in range(0, len(labels), size)]

    def _report(self, num_done: int) -> None:
        self.num_done += num_done
        self.progress(self.num_done, self.num_total)


def _assess(questions: Sequence[Question]) -> list[AcceptanceReport]:
    """Acceptance models against the recorded traces, where a study leaves these."""
    recorded = {question.temperature: question.recorded for question in questions if question.alignment != "recorded"}
    return [assess_acceptance(traces) for traces in recorded.values() if len(traces) >= LEAST_REQUESTS]


def _score_all(question: Question, found: Evaluated, baseline: Evaluated, study: Study) -> list[tuple[Timing, Scored]]:
    return [
        (timing, _scored(question, found, baseline, index, study))
        for index, timing in enumerate(question.workload.timings)
    ]


def _scored(question: Question, found: Evaluated, baseline: Evaluated, timing: int, study: Study) -> Scored:
    return score(
        found,
        baseline,
        timing,
        [trace.prompt_id for trace in question.workload.traces],
        temperature=question.temperature,
        objectives=study.objectives,
        seed=study.seed,
    )


def _table(question: Question, timing: Timing, scored: Scored, study: Study) -> pd.DataFrame:
    """Rows of results.parquet."""
    table = pd.DataFrame(speeds_summary(scored.speeds))
    for name in ("interval", "speedup_interval"):
        prefix = "" if name == "interval" else "speedup_"
        table[f"{prefix}low"], table[f"{prefix}high"] = zip(*table.pop(name), strict=True)
    table.insert(0, "scenario", question.scenario(timing))
    table.insert(1, "method", table.policy.str.partition(":")[0])
    table["alignment"], table["placement"] = question.alignment, timing.placement.label
    table["cost_ratio"] = question.cost_ratio if timing.cost_ratio is None else timing.cost_ratio
    for column, objective in enumerate(study.objectives):
        table[f"objective_{objective}"] = scored.objectives[:, column]
    table["probability_best"] = np.bincount(np.argmax(scored.resampled, axis=1), minlength=len(scored.labels)) / len(
        scored.resampled
    )
    table["is_pareto"] = pareto_front(scored.objectives, study.objectives)
    return table

"""The tasks of an exploration: the whole grid, or what Optuna asks for; what was stored is taken, the rest is worked out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.explore.outcomes import answer, merge
from analysis.explore.search import search_with_optuna
from analysis.explore.work.evaluation import Evaluated, evaluate_packed
from analysis.explore.work.scale_out import Workers, run_tasks
from analysis.explore.work.task_store import TaskStore
from analysis.study.questions import Question
from analysis.study.study import Study
from sim.decoding.policies.base import Policy
from sim.decoding.policies.serial.autoregressive import Autoregressive
from traces.progress import Report

BASELINE = Autoregressive()


@dataclass
class Tasks:
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
        grids = [question.policies for question in self.questions]
        sizes = [len(grid) if search.kind == "grid" else min(search.trials, len(grid)) for grid in grids]
        self.num_total = sum(sizes) + len(self.questions)
        if search.kind == "grid":
            work = [(index, part) for index, grid in enumerate(grids) for part in (*self._split(grid), (BASELINE,))]
            results = self.evaluate(work)
            searched = []
            for index, question in enumerate(self.questions):
                *parts, baseline = [part for (of, _), part in zip(work, results, strict=True) if of == index]
                searched.append((question, merge(parts), baseline))
            return searched
        return [self._search(index, question) for index, question in enumerate(self.questions)]

    def evaluate(self, work: Sequence[tuple[int, tuple[Policy, ...]]]) -> list[Evaluated]:
        """Results of (question, policies), in order."""
        results = [self.store.load(index, policies) for index, policies in work]
        for result in results:
            self._report(len(result.policies) if result else 0)
        missing = [position for position, result in enumerate(results) if result is None]
        tasks = [(self.questions[work[position][0]].packed(), work[position][1]) for position in missing]
        for number, result in run_tasks(evaluate_packed, tasks, self.workers):
            position = missing[number]
            self.store.save(work[position][0], result)
            results[position] = result
            self._report(len(result.policies))
        return [result for result in results if result is not None]

    def _search(self, index: int, question: Question) -> tuple[Question, Evaluated, Evaluated]:
        """Optuna; the objectives that steer are those of the first timing."""
        (baseline,) = self.evaluate([(index, (BASELINE,))])
        parts: list[Evaluated] = []

        def values(policies: Sequence[Policy]) -> list[tuple[float, ...]]:
            size = max(1, min(self.study.policies_per_task, self.study.search.batch // 4))
            split = [tuple(policies[start : start + size]) for start in range(0, len(policies), size)]
            results = self.evaluate([(index, part) for part in split])
            parts.extend(results)
            scored = answer(question, merge(results), baseline, 0, self.study).scored
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

    def _split(self, policies: Sequence[Policy]) -> list[tuple[Policy, ...]]:
        """Tasks of a grid. They do not depend on the number of workers, and neighbours in the grid share one: policies
        of one method step together."""
        size = self.study.policies_per_task
        return [tuple(policies[start : start + size]) for start in range(0, len(policies), size)]

    def _report(self, num_done: int) -> None:
        self.num_done += num_done
        self.progress(self.num_done, self.num_total)

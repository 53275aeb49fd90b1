"""What a report is about: the run folders behind one name on the command line, opened and told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.check.comparison import COMPARISON, ComparedPolicy, read_comparison
from analysis.check.validation import VALIDATION, Validation, read_validation
from analysis.explore.exploration import LATENCIES
from analysis.explore.inputs import latency_of, read_latency
from analysis.tuning.ablation import Ablated, read_ablation
from analysis.tuning.what_if import WHAT_IF, WhatIf, read_what_if
from executor.recording.settings import RecordSettings, read_settings
from sim.latency.base import LatencyModel
from traces.folder.run import Run, RunError, read_json, read_run
from traces.metrics.machine_speed import MachineSpeed, machine_speed_of
from traces.metrics.speeds import Speed, measured_speeds
from traces.schema import RequestTrace, without_repeats

PLAN = "plan"


@dataclass(frozen=True, kw_only=True)
class Explored:
    """An exploration's folder. table: of results.parquet. summary: of summary.json."""

    run: Run
    table: pd.DataFrame
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan's folder. summary: the verdict and what was asked. methods: a row each. curves: goodput by rate."""

    folder: Path
    summary: dict[str, Any]
    methods: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a report. name: for headings.

    recorded: the run whose traces and latencies predictions are made of. measured: the run whose times are the headline, which
    may be the same one. simulated: replays. Of a comparison, lookup: the run of prompt lookup; elsewhere: its methods at other
    costs; ablated: SpecBranch without each of its parts.
    """

    name: str
    recorded: Run | None = None
    measured: Run | None = None
    lookup: Run | None = None
    validation: Validation | None = None
    comparison: tuple[ComparedPolicy, ...] = ()
    explored: Explored | None = None
    simulated: tuple[Run, ...] = ()
    plans: tuple[Plan, ...] = ()
    elsewhere: WhatIf | None = None
    ablated: tuple[Ablated, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, each once."""
        explored = self.explored.run if self.explored else None
        runs = (self.recorded, self.measured, self.lookup, explored, *self.simulated)
        return list({run.folder: run for run in runs if run is not None}.values())

    @cached_property
    def machine(self) -> MachineSpeed:
        """The machine's speed over the measured run."""
        assert self.measured is not None
        return machine_speed_of(self.measured.requests, self.measured.rounds)

    @cached_property
    def speeds(self) -> list[Speed]:
        """Measured and adjusted, of the measured run; none where it holds no finished request."""
        if self.measured is None or self.measured.rounds.empty:
            return []
        return measured_speeds(self.measured.requests, self.machine.adjusted(self.measured.rounds))

    @cached_property
    def raw_speeds(self) -> list[Speed]:
        """The same as measured."""
        if self.measured is None or self.measured.rounds.empty:
            return []
        return measured_speeds(self.measured.requests, self.measured.rounds)

    @cached_property
    def traces(self) -> list[RequestTrace]:
        """What was recorded of acceptance; repeats of a sequence once."""
        return [] if self.recorded is None else without_repeats(self.recorded.traces())

    @cached_property
    def latency(self) -> LatencyModel | None:
        """Of an exploration what it ran on, otherwise fitted to the recorded run; None where nothing calibrates."""
        try:
            if self.explored is not None and self.measured is None:
                return read_latency(self.explored.run.folder / LATENCIES)
            return None if self.recorded is None or self.recorded.ops.empty else latency_of(self.recorded)
        except ValueError:
            return None

    @property
    def temperatures(self) -> list[float]:
        """Those of the traces."""
        return sorted({trace.temperature for trace in self.traces})


def read_arms(folders: Sequence[Path]) -> list[Arm]:
    """One arm for each folder, but for folders that tell one story: an exploration, a replay or a plan joins the arm before
    it, and a validation the recording of the same pair. Raises `RunError`."""
    arms: list[Arm] = []
    for folder in folders:
        arm = read_arm(folder)
        joined = _join(arms[-1], arm) if arms else None
        if joined is None:
            arms.append(arm)
        else:
            arms[-1] = joined
    names = [arm.name for arm in arms]
    return [
        replace(arm, name=str(folder)) if names.count(arm.name) > 1 else arm
        for arm, folder in zip(arms, folders, strict=False)
    ]


def read_arm(folder: Path) -> Arm:
    """Whatever a command left in a folder: one run, or the folders of a demo, a comparison or a replay. Raises `RunError`."""
    name = folder.resolve().name
    if (folder / "meta.json").is_file():
        return _arm_of_run(name, read_run(folder))
    if (folder / "methods.parquet").is_file():
        return Arm(name=name, plans=(_read_plan(folder),))
    inner = sorted(path for path in _folders_in(folder) if (path / "meta.json").is_file())
    if not inner:
        raise RunError(
            f"{folder} holds no run; give a folder that record, explore, simulate, validate, compare, demo or plan wrote."
        )
    by_name = {path.name: path for path in inner}
    if "recorded" in by_name:
        return _arm_of_story(name, folder, by_name)
    arms = [_arm_of_run(name, read_run(path)) for path in inner]
    first = arms[0]
    if any(arm.measured for arm in arms):
        raise RunError(f"{folder} holds {len(inner)} runs; name those that the report shall be about.")
    return replace(first, simulated=tuple(run for arm in arms for run in arm.simulated))


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}; check the path.")
    return [path for path in folder.iterdir() if path.is_dir()]


def _arm_of_story(name: str, folder: Path, by_name: dict[str, Path]) -> Arm:
    """A demo or a comparison: what was recorded, and what was measured after it."""
    recorded = read_run(by_name["recorded"])
    measured_at = by_name.get("validated") or by_name.get("compared")
    arm = _arm_of_run(name, read_run(measured_at)) if measured_at else _arm_of_run(name, recorded)
    explored = _read_explored(read_run(by_name["explored"])) if "explored" in by_name else None
    lookup = read_run(by_name["compared_lookup"]) if "compared_lookup" in by_name else None
    comparison = tuple(read_comparison(folder)) if (folder / f"{COMPARISON}.json").is_file() else arm.comparison
    return replace(
        arm,
        recorded=recorded,
        explored=explored,
        lookup=lookup,
        comparison=comparison,
        elsewhere=read_what_if(folder) if (folder / f"{WHAT_IF}.json").is_file() else None,
        ablated=tuple(read_ablation(folder)),
    )


def _arm_of_run(name: str, run: Run) -> Arm:
    kind = run.meta.get("kind")
    if kind == "explored":
        return Arm(name=name, explored=_read_explored(run), recorded=_source_of(run))
    if kind == "simulated":
        return Arm(name=name, simulated=(run,), recorded=_source_of(run))
    if kind != "executed":
        raise RunError(f"{run.folder} is a run of kind {kind!r:.40}, of which no report is made; give a recorded run.")
    validation = read_validation(run.folder) if (run.folder / f"{VALIDATION}.json").is_file() else None
    comparison = read_comparison(run.folder) if (run.folder / f"{COMPARISON}.json").is_file() else []
    return Arm(name=name, recorded=run, measured=run, validation=validation, comparison=tuple(comparison))


def _source_of(run: Run) -> Run | None:
    """The run that a prediction was made from, if it is still where it was."""
    try:
        return read_run(str(run.config.get("run", "")))
    except RunError:
        return None


def _read_explored(run: Run) -> Explored:
    path = run.folder / "results.parquet"
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}; explore again.") from error
    missing = {"scenario", "policy", "method", "temperature", "speedup", "tokens_per_s"} - set(table.columns)
    summary = run.summary.get("exploration")
    if missing or not isinstance(summary, dict):
        raise RunError(f"{run.folder} holds no exploration that can be read; explore again.")
    return Explored(run=run, table=table, summary=summary)


def _read_plan(folder: Path) -> Plan:
    summary = read_json(folder / "summary.json").get(PLAN)
    try:
        methods, curves = (pd.read_parquet(folder / f"{name}.parquet") for name in ("methods", "curves"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no plan that can be read; plan again.") from error
    if not isinstance(summary, dict):
        raise RunError(f"{folder} holds no plan that can be read; plan again.")
    return Plan(folder=folder, summary=summary, methods=methods, curves=curves)


def _join(before: Arm, arm: Arm) -> Arm | None:
    """Both as one arm; None where they are two sides of a comparison."""
    if arm.measured is None:  # nothing of it was measured: it belongs to what was
        return replace(
            before,
            explored=arm.explored or before.explored,
            simulated=(*before.simulated, *arm.simulated),
            plans=(*before.plans, *arm.plans),
            recorded=before.recorded or arm.recorded,
        )
    if before.measured is None:
        return replace(arm, explored=before.explored, simulated=before.simulated, plans=before.plans)
    is_recording = before.validation is None and not before.comparison
    if arm.validation is not None and is_recording and _pair_of(before.measured) == _pair_of(arm.measured):
        return replace(arm, recorded=before.recorded, explored=before.explored or arm.explored)
    return None


def settings_of(run: Run) -> RecordSettings | None:
    """What a run was recorded with; None where no models made it, or its settings cannot be read."""
    try:
        return read_settings(run.config, where=run.folder)
    except ValueError:
        return None


def _pair_of(run: Run) -> tuple[Any, ...]:
    return tuple(run.meta.get(f"{name}_fingerprint") for name in ("target", "draft"))

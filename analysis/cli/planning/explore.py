"""`specbranch explore`: a study from a file and flags, answered in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from analysis.cli.conclusion import AsJson, conclude, console_for
from analysis.cli.options import MAX_COUNT, MAX_SEED, CalibrationFile, OutputDir, Policies, Temperatures, within
from traces.importers.base import Unseen

if TYPE_CHECKING:
    from analysis.explore.exploration import Exploration
    from analysis.study.study import Study

MAX_SCENARIOS = 6  # printed; all of them are in the results


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """What flags say of a study, in the place of what its file says. None, 0 and empty leave it as it is.

    conditions: values of `analysis.study.study.Conditions` by name. trials: of Optuna, for which a sampler alone suffices.
    """

    file: Path | None = None
    policies: Sequence[str] | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    objectives: Sequence[str] | None = None
    trials: int = 0
    sampler: str | None = None
    seed: int | None = None

    def study(self) -> Study:
        """The file's study, or that of the default grid, with the flags' values; StudyError where they make none."""
        from analysis.study.candidates import default_grid
        from analysis.study.study import make_study, read_study
        from sim.decoding.policies.catalog import label_of, parse_policies

        if self.file is None:
            settings: dict[str, Any] = {"policies": list(map(label_of, default_grid()))}
        else:
            settings = read_study(self.file).as_dict()
        if self.policies:
            parse_policies(self.policies)
            settings["policies"] = list(self.policies)
        conditions = {name: values for name, values in self.conditions.items() if values}
        settings["conditions"] = dict(settings.get("conditions", {})) | conditions
        if self.objectives:
            settings["objectives"] = list(self.objectives)
        if self.trials or self.sampler:
            search = dict(settings.get("search", {}))
            kind = self.sampler or (search["kind"] if search.get("kind", "grid") != "grid" else "tpe")
            settings["search"] = search | {"kind": kind} | ({"trials": self.trials} if self.trials else {})
        if self.seed is not None:
            settings["seed"] = self.seed
        return make_study(settings, where=str(self.file or "flags"))


def explore(
    run: Annotated[
        Path,
        typer.Option(
            "--run", "--trace", help="Read this run folder of `specbranch record`, or a file of another program."
        ),
    ],
    output_dir: OutputDir,
    study: Annotated[Path | None, typer.Option(help="Answer this YAML study; the flags below change it.")] = None,
    policy: Policies = None,
    calibration: CalibrationFile = None,
    unseen: Annotated[
        Unseen, typer.Option(help="Outcomes that another program did not write down are taken to be these.")
    ] = Unseen.REJECTED,
    temperature: Temperatures = None,
    placement: Annotated[
        list[str] | None, typer.Option(help="Run on two_devices or a shared_device; give it once for each one.")
    ] = None,
    interference: Annotated[
        list[float] | None,
        typer.Option(
            callback=within(1, 100),
            help="Two models on a shared device slow each other down by this factor, 1 to 2; give it once for each value.",
        ),
    ] = None,
    link_latency: Annotated[
        list[float] | None,
        typer.Option(
            callback=within(0, 1e6),
            help="Each way between two devices takes this many ms; give it once for each value.",
        ),
    ] = None,
    cost_ratio: Annotated[
        list[float] | None,
        typer.Option(
            callback=within(1e-6, 1e6),
            help="A target forward takes this many draft forwards, whatever was measured; give it once for each value.",
        ),
    ] = None,
    alignment: Annotated[
        list[str] | None,
        typer.Option(
            help="Outcomes are recorded, resampled, geometric:alpha=0.7, hazard, markov, informed, or recorded and verified "
            "by an engine's rule: ratio, point_mass; give it once for each value."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Judge by speed, rollback, energy (busy seconds a token) or memory; give it once for each value."
        ),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            callback=within(0, MAX_COUNT), help="Search with Optuna among so many policies; 0 tries the whole grid."
        ),
    ] = 0,
    sampler: Annotated[str | None, typer.Option(help="Optuna uses this sampler: tpe (the default) or nsga2.")] = None,
    workers: Annotated[int, typer.Option(callback=within(1, 1024), help="Work in this many processes.")] = 1,
    backend: Annotated[str, typer.Option(help="Work in processes of this machine, or on dask.")] = "processes",
    scheduler: Annotated[str | None, typer.Option(help="The Dask scheduler has this address.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            callback=within(0, MAX_SEED), help="Everything random follows from this seed; by default from the study's."
        ),
    ] = None,
    top: Annotated[int, typer.Option(callback=within(1, MAX_COUNT), help="Print this many of the best policies.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Try many policies on the simulator, calibrated from a run; a killed one goes on when called again."""
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_lines
    from analysis.explore.exploration import explore_study
    from analysis.explore.scale_out import Workers
    from analysis.tuning.auto import check_labels, default_policies, resolution_lines, resolve_on_run
    from sim.decoding.policies.catalog import label_of

    stated = [label for label in policy or () if label not in check_labels(policy or ())]
    flags = StudyFlags(
        file=study,
        policies=stated,
        conditions={
            "temperatures": temperature,
            "placements": placement,
            "interference": interference,
            "link_latency_s": link_latency and [1e-3 * value for value in link_latency],
            "cost_ratios": cost_ratio,
            "alignments": alignment,
        },
        objectives=objective,
        trials=trials,
        sampler=sampler,
        seed=seed,
    )
    flags.study()  # refuses what is no study before anything is read
    told = console_for(as_json)
    if policy or study is not None:
        resolved = resolve_on_run(policy or (), run, latency=calibration, temperatures=temperature or (), unseen=unseen)
        print_lines(told, resolution_lines(resolved))
        policies = list(resolved.values())
    else:
        policies = default_policies(run, latency=calibration, temperatures=temperature or (), unseen=unseen)
    flags = replace(flags, policies=list(map(label_of, policies)))
    where = Workers(count=workers, backend=backend, scheduler=scheduler)  # type: ignore[arg-type]  # it refuses others
    with progress_bar(told, "policies") as report:
        explored = explore_study(
            run, output_dir, flags.study(), latency=calibration, unseen=unseen, workers=where, progress=report
        )
    _print_exploration(told, explored, output_dir, top)
    conclude([output_dir], as_json=as_json)


def _print_exploration(console: Console, explored: Exploration, output_dir: Path, top: int) -> None:
    """The best policies, how sure that is and what it depends on."""
    from analysis.cli.tables import print_doubt

    for scenario in list(explored.rankings)[:MAX_SCENARIOS]:
        _print_scenario(console, explored, scenario, top)
    if len(explored.rankings) > MAX_SCENARIOS:
        console.print(f"{len(explored.rankings) - MAX_SCENARIOS} more scenarios are in results.parquet")
    print_doubt(console, explored.doubt)
    if explored.effects and not explored.doubt:
        worst = explored.effects[0]
        console.print(
            f"most sensitive to {worst.group} {worst.term}: at the end of its interval the choice loses {worst.regret:.2%}",
            highlight=False,
        )
    for limit in explored.limits:
        console.print(f"not in this trace: {limit}", highlight=False, markup=False)
    for assessed in explored.acceptance:
        console.print(assessed.text(), highlight=False, markup=False)
    reused = f", {explored.num_reused_tasks} tasks taken from before" if explored.num_reused_tasks else ""
    console.print(
        f"{explored.num_policies} policies on {explored.num_tokens} recorded tokens in {explored.wall_s:.1f} s{reused}; "
        f"results: {output_dir}",
        highlight=False,
    )


def _print_scenario(console: Console, explored: Exploration, scenario: str, top: int) -> None:
    from analysis.cli.tables import print_speeds, short_label

    rows, ranking = explored.table.scenario == scenario, explored.rankings[scenario]
    speeds = [speed for speed, is_here in zip(explored.speeds, rows, strict=True) if is_here]
    best = sorted(speeds, key=lambda speed: -speed.tokens_per_s)[:top]
    if explored.doubt:  # then nothing is called the best
        print_speeds(console, f"{len(best)} of {len(speeds)} policies, predicted, {scenario}", best)
        return
    print_speeds(console, f"Best of {len(speeds)} policies, predicted, {scenario}", best)
    sure = f"best with probability {ranking.probability_best:.2f} over prompts"
    if ranking.runner_up is not None and ranking.gain is not None and ranking.gain_interval is not None:
        low, high = ranking.gain_interval
        sure += f"; against {short_label(ranking.runner_up)} {ranking.gain:+.1%} ({low:+.1%} to {high:+.1%})"
    console.print(f"{sure}; expected regret {ranking.expected_regret:.2%}", highlight=False)

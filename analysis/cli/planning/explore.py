"""The explore command: a study from a file and flags, run, and told in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.cli.progress import progress_bar
from analysis.cli.tables import print_speeds, short_label
from analysis.explore.exploration import Exploration, default_grid, explore_study
from analysis.explore.scale_out import Workers
from analysis.study.study import Study, StudyError, make_study, read_study

MOST_SCENARIOS = 6  # printed; all of them are in the results


def study_of(
    study_file: Path | None,
    policies: Sequence[str] | None,
    conditions: Mapping[str, Any],
    *,
    objectives: Sequence[str] | None = None,
    trials: int = 0,
    sampler: str | None = None,
    seed: int | None = None,
) -> Study:
    """The study of a file (or the default grid) with what flags say in its place; None and 0 say nothing."""
    base: dict[str, Any] = {"policies": default_grid()}
    if study_file is not None:
        base = read_study(study_file).as_dict()
    if policies:
        base["policies"] = list(policies)
    base["conditions"] = dict(base.get("conditions", {})) | {name: v for name, v in conditions.items() if v}
    if objectives:
        base["objectives"] = list(objectives)
    if trials or sampler:
        search = dict(base.get("search", {}))
        chosen = sampler or (search["kind"] if search.get("kind", "grid") != "grid" else "tpe")
        base["search"] = search | {"kind": chosen} | ({"trials": trials} if trials else {})
    if seed is not None:
        base["seed"] = seed
    return make_study(base, where=str(study_file or "flags"))


def explore_and_print(
    console: Console,
    run: Path,
    output_dir: Path,
    *,
    study_file: Path | None,
    policies: Sequence[str] | None,
    calibration: Path | None,
    conditions: Mapping[str, Any],
    objectives: Sequence[str] | None,
    trials: int,
    sampler: str | None,
    workers: int,
    backend: str,
    scheduler: str | None,
    seed: int | None,
    top: int,
) -> Exploration:
    """Explore, and print the best policies, how sure that is and what it hangs on."""
    study = study_of(study_file, policies, conditions, objectives=objectives, trials=trials, sampler=sampler, seed=seed)
    if backend not in ("processes", "dask"):
        raise StudyError(f"unknown backend {backend!r}; known are processes and dask.")
    where = Workers(count=workers, backend="dask" if backend == "dask" else "processes", scheduler=scheduler)
    with progress_bar(console, "policies") as report:
        found = explore_study(run, output_dir, study, calibration=calibration, workers=where, progress=report)
    for scenario, ranking in list(found.rankings.items())[:MOST_SCENARIOS]:
        rows = found.table.scenario == scenario
        speeds = [speed for speed, chosen in zip(found.speeds, rows, strict=True) if chosen]
        best = sorted(speeds, key=lambda speed: -speed.tokens_per_s)[:top]
        print_speeds(console, f"Best of {len(speeds)} policies, predicted, {scenario}", best)
        sure = f"best with probability {ranking.probability_best:.2f} over prompts"
        if ranking.runner_up is not None and ranking.gain is not None and ranking.gain_interval is not None:
            low, high = ranking.gain_interval
            sure += f"; against {short_label(ranking.runner_up)} {ranking.gain:+.1%} ({low:+.1%} to {high:+.1%})"
        console.print(f"{sure}; expected regret {ranking.expected_regret:.2%}", highlight=False)
    if len(found.rankings) > MOST_SCENARIOS:
        console.print(f"{len(found.rankings) - MOST_SCENARIOS} more scenarios are in results.parquet")
    if found.effects:
        worst = found.effects[0]
        console.print(
            f"most sensitive to {worst.group} {worst.term}: at the end of its interval the choice loses {worst.regret:.2%}",
            highlight=False,
        )
    for assessed in found.acceptance:
        console.print(assessed.text(), highlight=False, markup=False)
    reused = f", {found.num_reused_tasks} tasks taken from before" if found.num_reused_tasks else ""
    console.print(
        f"{found.num_policies} policies on {found.num_tokens} recorded tokens in {found.wall_s:.1f} s{reused}; "
        f"results: {output_dir}",
        highlight=False,
    )
    return found

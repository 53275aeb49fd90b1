"""`specbranch explore`: a study from a file and flags, answered in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from analysis.cli.conclusion import AsJson, conclude, console_for
from analysis.cli.options import MAX_COUNT, MAX_SEED, CalibrationFile, OutputDir, Policies, Temperatures, within
from traces.importers.unseen import Unseen

if TYPE_CHECKING:
    from analysis.explore.exploration import Exploration

MAX_SCENARIOS = 6  # printed; all of them are in the results


def explore(
    output_dir: OutputDir,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            "--trace",
            help="Read this run folder of `specbranch record`, or a file of another program; without one, --alignment gives a "
            "law of acceptance and --calibration the times.",
        ),
    ] = None,
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
    from analysis.explore.work.scale_out import Workers
    from analysis.study.flags import StudyFlags
    from analysis.tuning.asked import asked_study

    where = Workers(count=workers, backend=backend, scheduler=scheduler)  # type: ignore[arg-type]  # it refuses others
    flags = StudyFlags(
        study=study,
        policies=policy,
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
    told = console_for(as_json)
    asked, lines = asked_study(flags, run, latency=calibration, unseen=unseen)
    print_lines(told, lines)
    with progress_bar(told, "policies") as report:
        explored = explore_study(
            run, output_dir, asked, latency=calibration, unseen=unseen, workers=where, progress=report
        )
    _print_exploration(told, explored, output_dir, top)
    conclude([output_dir], as_json=as_json)


def _print_exploration(console: Console, explored: Exploration, output_dir: Path, top: int) -> None:
    """The best policies, how sure that is and what it depends on."""
    from analysis.cli.tables import print_columns, print_doubt

    for scenario in list(explored.rankings)[:MAX_SCENARIOS]:
        _print_scenario(console, explored, scenario, top)
    print_columns(
        console,
        "speed-up: over plain decoding, [95%] over prompts. tokens/forward: a target forward gives so many (vLLM: mean "
        "acceptance length). n: prompts.",
    )
    if len(explored.rankings) > MAX_SCENARIOS:
        console.print(f"{len(explored.rankings) - MAX_SCENARIOS} more scenarios are in results.parquet")
    if not explored.doubt:
        _print_across(console, explored)
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
        f"{explored.num_policies} policies on {explored.num_tokens} tokens in {explored.wall_s:.1f} s{reused}; "
        f"results: {output_dir}",
        highlight=False,
    )


def _print_scenario(console: Console, explored: Exploration, scenario: str, top: int) -> None:
    from analysis.cli.tables import pasted_label, print_speeds, short_label

    rows, ranking = explored.table.scenario == scenario, explored.rankings[scenario]
    speeds = [speed for speed, is_here in zip(explored.speeds, rows, strict=True) if is_here]
    best = sorted(speeds, key=lambda speed: -speed.tokens_per_s)[:top]
    if explored.doubt:  # then nothing is called the best
        print_speeds(console, f"{len(best)} of {len(speeds)} policies, predicted, {scenario}", best, explains=False)
        return
    print_speeds(console, f"Best of {len(speeds)} policies, predicted, {scenario}", best, explains=False)
    sure = f"best with probability {ranking.probability_best:.2f} over prompts"
    if ranking.runner_up is not None and ranking.gain is not None and ranking.gain_interval is not None:
        low, high = ranking.gain_interval
        sure += f"; against {short_label(ranking.runner_up)} {ranking.gain:+.1%} ({low:+.1%} to {high:+.1%})"
    console.print(
        f"{sure}; expected regret {ranking.expected_regret:.2%}; --policy {pasted_label(ranking.best)}", highlight=False
    )


def _print_across(console: Console, explored: Exploration) -> None:
    """A study of several scenarios in one table and one sentence."""
    from rich.table import Table

    from analysis.cli.tables import pasted_label, print_columns, short_label
    from analysis.explore.across import summarise_scenarios

    if (across := summarise_scenarios(explored.table)) is None:
        return
    table = Table(title=f"Across {len(across.rows)} scenarios", title_justify="left", box=None, pad_edge=False)
    table.add_column("scenario")
    table.add_column("best policy", min_width=18)
    table.add_column("speed-up", justify="right")
    table.add_column("loss", justify="right")
    for scenario, best, speedup, loss in across.rows:
        table.add_row(scenario, short_label(best), f"{speedup:.2f}", f"{loss:.1%}")
    console.print(table)
    print_columns(console, "loss: what the policy below gives up there, as a share of the best speed")
    console.print(
        f"One policy for all of them: {pasted_label(across.policy)} loses {across.mean_loss:.1%} in the mean and "
        f"{across.worst_loss:.1%} at worst.",
        style="bold",
        highlight=False,
    )

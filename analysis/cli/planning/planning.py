"""The commands that answer from data alone, without a model: roofline, simulate, explore, plot, published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import CalibrationFile, OutputDir, Policies, RunDir, Seed, Temperatures, console


def roofline(
    output: Annotated[Path, typer.Option(help="New file; give it to explore or simulate as --calibration.")],
    target: Annotated[str, typer.Option(help="Shape such as llama-3.1-70b, or a Hugging Face id or folder.")],
    draft: Annotated[str, typer.Option(help="Likewise.")],
    hardware: Annotated[str, typer.Option(help="The target's device: h100, a100-80gb, l40s, mi300x ...")] = "h100",
    num_devices: Annotated[int, typer.Option(help="That share the target's matrices.")] = 1,
    draft_hardware: Annotated[str, typer.Option(help="One device for the draft alone; the target's by default.")] = "",
    bits: Annotated[float, typer.Option(help="Of each weight.")] = 16.0,
    context: Annotated[int, typer.Option(help="Typical tokens in the cache.")] = 1024,
    bandwidth_share: Annotated[float, typer.Option(help="Of the data sheet's, as reached.")] = 0.9,
    peak_share: Annotated[float, typer.Option(help="Likewise, of its 16-bit products.")] = 0.7,
    layer_us: Annotated[float, typer.Option(help="Each layer's launches and collectives, microseconds.")] = 20.0,
    host_us: Annotated[float, typer.Option(help="The host's own work in a round, microseconds.")] = 500.0,
    uncertainty: Annotated[
        float, typer.Option(help="Of each of these, relative; a study says what hangs on it.")
    ] = 0.2,
) -> None:
    """Latencies of a pair on hardware you do not have, from weights, bandwidth and peak, for explore and simulate."""
    from analysis.cli.planning.roofline import Planned, plan_and_print

    planned = Planned(
        target=target,
        draft=draft,
        hardware=hardware,
        num_devices=num_devices,
        draft_hardware=draft_hardware,
        bits=bits,
        context_tokens=context,
        bandwidth_share=bandwidth_share,
        peak_share=peak_share,
        layer_s=1e-6 * layer_us,
        host_s=1e-6 * host_us,
        uncertainty=uncertainty,
    )
    plan_and_print(console, planned, output)


def simulate(
    run: RunDir,
    output_dir: OutputDir,
    policy: Policies = None,
    calibration: CalibrationFile = None,
    seed: Seed = 0,
) -> None:
    """Replay a recorded run under other policies in simulated time; writes a run folder for each."""
    from analysis.cli.tables import print_speeds
    from analysis.explore.simulation import simulate_run

    if not policy:
        raise ValueError("no policy to simulate; give --policy, such as --policy pearl:draft_length=6.")
    speeds = simulate_run(run, output_dir, policy, calibration=calibration, seed=seed)
    print_speeds(console, "Simulated", speeds)
    console.print(f"run folders: {output_dir}")


def explore(
    run: Annotated[Path, typer.Option("--run", "--trace", help="Run folder of `specbranch record`.")],
    output_dir: OutputDir,
    study: Annotated[Path | None, typer.Option(help="YAML study; flags below add to what it says.")] = None,
    policy: Policies = None,
    calibration: CalibrationFile = None,
    temperature: Temperatures = None,
    placement: Annotated[list[str] | None, typer.Option(help="two_devices or shared_device; repeatable.")] = None,
    interference: Annotated[
        list[float] | None, typer.Option(help="Slow-down of two models on a shared device, 1 to 2; repeatable.")
    ] = None,
    link_latency: Annotated[
        list[float] | None, typer.Option(help="One way between two devices, ms; repeatable.")
    ] = None,
    cost_ratio: Annotated[
        list[float] | None, typer.Option(help="Target forward / draft forward, in place of the measured; repeatable.")
    ] = None,
    alignment: Annotated[
        list[str] | None, typer.Option(help="recorded, resampled, geometric:alpha=0.7, hazard, markov; repeatable.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="speed, rollback, energy (busy seconds a token), memory; repeatable.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Search with Optuna, so many policies; 0 tries the whole grid.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="Of Optuna: tpe (the default) or nsga2.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    backend: Annotated[str, typer.Option(help="processes or dask.")] = "processes",
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; the study's by default.")] = None,
    top: Annotated[int, typer.Option(help="How many of the best to print.")] = 10,
) -> None:
    """Try many policies on the simulator, calibrated from a run; a killed one goes on when called again."""
    from analysis.cli.planning.explore import explore_and_print

    explore_and_print(
        console,
        run,
        output_dir,
        study_file=study,
        policies=policy,
        calibration=calibration,
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
        workers=workers,
        backend=backend,
        scheduler=scheduler,
        seed=seed,
        top=top,
    )


def plot(
    explored: Annotated[Path, typer.Option("--explored", help="Folder of `specbranch explore`.")],
    output_dir: OutputDir,
    measured: Annotated[
        Path | None, typer.Option(help="Run folder with real speeds, as of validate; the explored run's by default.")
    ] = None,
) -> None:
    """Draw an exploration: draft lengths, branches, break-even map, acceptance by position, Pareto front."""
    from analysis.figures.figures import draw_figures

    for path in draw_figures(explored, output_dir, measured_dir=measured):
        console.print(f"figure {path}", highlight=False)


def published(
    output_dir: OutputDir,
    num_requests: Annotated[int, typer.Option(help="Simulated requests at each point.")] = 16,
    num_tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 250,
    seed: Seed = 0,
) -> None:
    """Every method simulated at published operating points, and over speed ratio and acceptance: where each wins."""
    from analysis.cli.planning.published import publish_and_print
    from analysis.papers.published import Effort

    publish_and_print(console, output_dir, Effort(num_requests=num_requests, num_tokens=num_tokens, seed=seed))

"""The command line: here the commands that run models, and what `specbranch` does with an error.

Every command works on run folders and prints a small table. Nothing heavy is imported before a command needs it: torch
only by the commands that run real models.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.cli.models.hrad import hrad_app
from analysis.cli.options import (
    CalibrationFile,
    Capacity,
    Draft,
    OutputDir,
    Policies,
    RunDir,
    Seed,
    Target,
    Temperatures,
    console,
)
from analysis.cli.planning.planning import explore, plot, published, roofline, simulate

app = typer.Typer(
    name="specbranch",
    help="Decide how a large language model should decode: record, calibrate, explore, validate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(hrad_app, name="hrad")
pair_app = typer.Typer(help="The embedded draft/target pair.", no_args_is_help=True)
app.add_typer(pair_app, name="pair")


@app.command()
def record(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: Draft = "embedded",
    policy: Policies = None,
    temperature: Temperatures = None,
    top_k: Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the most probable tokens up to this mass; 1 is off.")] = 1.0,
    prompts: Annotated[str, typer.Option(help="`held_out`, `training`, or a .jsonl file of prompts.")] = "held_out",
    num_prompts: int = 16,
    skip_prompts: int = 0,
    max_new_tokens: int = 96,
    repeats: int = 1,
    seed: Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")] = None,
    ignore_eos: bool = False,
    tail_depth: Annotated[int, typer.Option(help="Draft tokens recorded after each wrong one.")] = 16,
    engine: Annotated[str, typer.Option(help="static, hugging_face, or resident (GPUs, graphs).")] = "static",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; of both models, or of the draft alone.")] = "cpu",
    target_device: Annotated[str, typer.Option(help="The target's device, if it is another one.")] = "",
    transport: Annotated[
        str, typer.Option(help="Between two processes: mailbox (shared memory) or distributed (torch: NCCL, gloo).")
    ] = "mailbox",
    dtype: str = "float32",
    capacity: Capacity = 1024,
    verify_width: Annotated[int, typer.Option(help="Rows of every verification, resident engine; 0 is as needed.")] = 0,
    draft_sms: Annotated[int, typer.Option(help="Multiprocessors of a shared GPU that the draft may use; 0: all.")] = 0,
    acceptance: Annotated[
        str, typer.Option(help="Synthetic acceptance: geometric:alpha=0.8, or run:FOLDER; real by default.")
    ] = "",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Time a grid of contexts, widths and branches instead of decoding.")
    ] = False,
) -> None:
    """Run a pair for real and write down everything that happened."""
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_speeds
    from executor.recording.recorder import RecordSettings
    from executor.recording.recorder import record as record_run
    from executor.recording.synthetic import SyntheticAcceptance
    from traces.metrics.speeds import measured_speeds

    defaults = RecordSettings()
    settings = RecordSettings(
        target=target,
        draft=draft,
        policies=tuple(policy or defaults.policies),
        temperatures=tuple(temperature or defaults.temperatures),
        top_k=top_k,
        top_p=top_p,
        prompts=prompts,
        num_prompts=num_prompts,
        skip_prompts=skip_prompts,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        seed=seed,
        stop_strings=tuple(stop or ()),
        ignore_eos=ignore_eos,
        tail_depth=tail_depth,
        engine=engine,
        device=device,
        target_device=target_device,
        transport=transport,
        dtype=dtype,
        capacity=capacity,
        verify_width=verify_width,
        draft_sms=draft_sms,
        acceptance=acceptance,
    )
    if sweep:
        from executor.recording.sweep import Grid, record_sweep

        with progress_bar(console, "sweeping") as report:
            record_sweep(settings, output_dir, Grid(), progress=report)
        console.print(f"run folder: {output_dir}; fit it with: specbranch calibrate --run {output_dir}")
        return
    synthetic = SyntheticAcceptance(acceptance) if acceptance else None
    with progress_bar(console, "recording") as report:
        run = record_run(settings, output_dir, progress=report, synthetic=synthetic)
    print_speeds(console, "Measured", measured_speeds(run.requests, run.rounds))
    identical = {True: "yes", False: "NO", None: "not claimed, acceptance is synthetic"}
    console.print(f"tokens identical under every policy: {identical[run.summary['tokens_identical']]}")
    console.print(f"run folder: {output_dir}")


@app.command()
def calibrate(
    run: RunDir,
    output: Annotated[Path | None, typer.Option(help="Where to write; RUN/calibration.json by default.")] = None,
    seed: Seed = 0,
) -> None:
    """Fit latencies to a recorded run and print how good the fit is."""
    from traces.fits.calibration import calibrate as fit
    from traces.folder.run import read_run

    path = output or run / "calibration.json"
    if path.exists():
        raise ValueError(f"{path} exists already; name another place with --output.")
    fitted = fit(read_run(run), seed=seed)
    fitted.save(path)
    console.print(fitted.report(), highlight=False, markup=False)
    console.print(f"calibration: {path}")


for _command in (roofline, simulate, explore, plot, published):
    app.command()(_command)


@app.command()
def validate(
    run: RunDir,
    output_dir: OutputDir,
    policy: Policies = None,
    calibration: CalibrationFile = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts to run, none of which the run holds.")] = 16,
    repeats: int = 1,
    seed: Seed = 0,
) -> None:
    """Run policies for real on prompts that were not recorded, and compare with the prediction."""
    from analysis.check.validate import validate_run
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_validation

    with progress_bar(console, "measuring") as report:
        found = validate_run(
            run,
            output_dir,
            policy
            or ["autoregressive", "fixed_length:draft_length=2", "fixed_length:draft_length=4", "pearl:draft_length=6"],
            calibration=calibration,
            num_prompts=num_prompts,
            repeats=repeats,
            seed=seed,
            progress=report,
        )
    print_validation(console, found)
    console.print(f"run folder: {output_dir}")


@app.command()
def compare(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: Draft = "embedded",
    hrad: Annotated[str, typer.Option(help="H-RAD predictor: folder, `embedded`, or empty for none.")] = "",
    temperature: Temperatures = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts to calibrate on, and as many others to measure.")] = 32,
    max_new_tokens: int = 96,
    repeats: int = 1,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts, small grids: under a minute.")] = False,
) -> None:
    """Every method on the same prompts, each with the settings that the simulator chose: measured beside predicted."""
    from analysis.check.compare import compare as compare_methods
    from analysis.check.compare import print_comparison
    from analysis.cli.progress import progress_bar

    rows = compare_methods(
        output_dir,
        target=target,
        draft=draft,
        hrad=hrad,
        temperatures=temperature or ([1.0] if quick else [0.0, 1.0]),
        num_prompts=min(num_prompts, 6) if quick else num_prompts,
        max_new_tokens=min(max_new_tokens, 48) if quick else max_new_tokens,
        repeats=repeats,
        is_quick=quick,
        seed=seed,
        progress=lambda title: progress_bar(console, title),
    )
    print_comparison(console, rows)
    console.print(f"run folders: {output_dir}")


@app.command()
def demo(
    output_dir: Annotated[Path | None, typer.Option("--output-dir", help="New folder; runs/demo-N by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and policies: under a minute.")] = False,
    seed: Seed = 0,
) -> None:
    """The whole loop on the embedded pair: record, calibrate, explore, validate, plot."""
    from analysis.demo import run_demo

    run_demo(console, output_dir, is_quick=quick, seed=seed)


@pair_app.command("train")
def pair_train(
    output_dir: OutputDir,
    preset: Annotated[str, typer.Option(help="cpu, gpu or quick.")] = "cpu",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the preset's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Shorten the schedule to end within this time.")] = None,
) -> None:
    """Train a pair from the standard library's source, as the embedded one was."""
    from dataclasses import replace

    from executor.embedded_pair.settings import PRESETS, shortened
    from executor.embedded_pair.training.train import train_pair

    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(sorted(PRESETS))}.")
    settings = PRESETS[preset]()
    if device is not None:
        settings = replace(settings, device=device)
    if max_minutes is not None:
        settings = shortened(settings, max_minutes)
    train_pair(settings, output_dir)


def main() -> None:
    """Entry point: an expected error is one line on standard error and exit code 1; a warning is one line, too."""
    warnings.showwarning = _show_warning
    try:
        app(standalone_mode=False)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        Console(stderr=True).print("interrupted; what was recorded before stays readable.")
        sys.exit(130)
    except Exception as error:
        if not _is_expected(error):
            raise
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        text = " ".join(told.split())
        Console(stderr=True, soft_wrap=True).print(f"error: {text}", markup=False, highlight=False)
        sys.exit(getattr(error, "exit_code", 1))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In the place of Python's own form, which shows a line of source: that says nothing to a user."""
    text = " ".join(str(message).split())
    Console(stderr=True, soft_wrap=True).print(f"warning: {text}", markup=False, highlight=False)


def _is_expected(error: Exception) -> bool:
    """Whether an error speaks to the user: bad input, a place that cannot be read or written, a failed worker."""
    return (
        isinstance(error, ValueError | OSError)
        or hasattr(error, "format_message")  # typer's own usage errors
        or type(error).__name__ == "ExecutorError"  # known by name, so that torch is not imported for it
    )


if __name__ == "__main__":
    main()

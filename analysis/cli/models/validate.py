"""`specbranch validate`: hold the simulator to real runs."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.conclusion import AsJson, conclude, console_for
from analysis.cli.options import (
    MAX_COUNT,
    NOT_IDENTICAL,
    CalibrationFile,
    MaxSeconds,
    OutputDir,
    Policies,
    Precision,
    Repeats,
    RunDir,
    Seed,
    TrustRemoteCode,
    within,
)


def validate(
    run: RunDir,
    output_dir: OutputDir,
    policy: Policies = None,
    calibration: CalibrationFile = None,
    num_prompts: Annotated[
        int, typer.Option(callback=within(1, MAX_COUNT), help="Run this many prompts, none of which the run holds.")
    ] = 16,
    repeats: Repeats = 1,
    precision: Precision = "",
    max_seconds: MaxSeconds = 0.0,
    seed: Seed = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Run policies for real on prompts that were not recorded, and compare with the prediction."""
    from analysis.check.precision import Effort
    from analysis.check.validate import validate_run
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_lines, print_validation
    from analysis.study.candidates import validated_policies
    from analysis.tuning.auto import resolution_lines, resolve_on_run

    effort = Effort.of(precision, max_seconds)
    resolved, told = resolve_on_run(policy or (), run, latency=calibration), console_for(as_json)
    policies = list(resolved.values()) or validated_policies()
    print_lines(told, resolution_lines(resolved))
    with progress_bar(told, "measuring") as report:
        validation = validate_run(
            run,
            output_dir,
            policies,
            latency=calibration,
            num_prompts=num_prompts,
            repeats=repeats,
            seed=seed,
            trusts_remote_code=trust_remote_code,
            effort=effort,
            progress=report,
        )
    print_validation(told, validation)
    told.print(f"run folder: {output_dir}")
    conclude([run, output_dir], as_json=as_json)
    if not validation.is_identical:
        raise typer.Exit(NOT_IDENTICAL)

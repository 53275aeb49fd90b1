"""`specbranch demo`: the whole loop on the embedded pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import NOT_IDENTICAL, Precision, Quick, Seed, console


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Write everything to this new folder; by default the next runs/demo-N.")
    ] = None,
    quick: Quick = False,
    precision: Precision = "3%",
    seed: Seed = 0,
) -> None:
    """The whole loop on the embedded pair: record, calibrate, explore, validate, plot."""
    from analysis.check.precision import parse_precision
    from analysis.demo import run_demo

    asked = parse_precision(precision)
    if not run_demo(console, output_dir, is_quick=quick, precision=asked, seed=seed).is_identical:
        raise typer.Exit(NOT_IDENTICAL)

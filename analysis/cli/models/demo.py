"""`specbranch demo`: the whole loop on the embedded pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import NOT_IDENTICAL, Quick, Seed, console


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Write everything to this new folder; by default the next runs/demo-N.")
    ] = None,
    quick: Quick = False,
    seed: Seed = 0,
) -> None:
    """The whole loop on the embedded pair: record, calibrate, explore, validate, plot."""
    from analysis.demo import run_demo

    if not run_demo(console, output_dir, is_quick=quick, seed=seed).is_identical:
        raise typer.Exit(NOT_IDENTICAL)

"""`specbranch demo`: the whole loop on a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.conclusion import AsJson, console_for
from analysis.cli.options import NOT_IDENTICAL, Precision, Quick, Seed


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Write everything to this new folder; by default the next runs/demo-N.")
    ] = None,
    pair: Annotated[
        str, typer.Option(help="Run this pair: embedded, or smollm2 (a pretrained target; `pair fetch smollm2` first).")
    ] = "embedded",
    quick: Quick = False,
    precision: Precision = "3%",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The whole loop on a pair: record, calibrate, explore, validate, plot."""
    from executor.remote.starting import start_ahead

    start_ahead()  # it imports while we do
    from analysis.check.precision import parse_precision
    from analysis.demo import next_folder, run_demo

    asked, folder = parse_precision(precision), output_dir or next_folder(Path("runs"))
    told = console_for(as_json)
    validation = run_demo(told, folder, pair=pair, is_quick=quick, precision=asked, seed=seed, as_json=as_json)
    if not validation.is_identical:
        raise typer.Exit(NOT_IDENTICAL)

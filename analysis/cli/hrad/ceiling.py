"""`specbranch hrad ceiling`: what a predictor could bring at most, before any is trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import CalibrationFile, RunDir, Seed, console
from traces.files import write_text


def ceiling(
    run: RunDir,
    calibration: CalibrationFile = None,
    output: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file as well.")] = None,
    seed: Seed = 0,
) -> None:
    """Say what oracles of the classes and of the positions would bring on a run, and how much a predictor must know to pay."""
    from rich.table import Table

    from analysis.explore.inputs import latency_of
    from analysis.papers.ceiling import ceilings
    from traces.folder.run import read_run

    if output is not None and output.exists():
        raise ValueError(f"{output} exists already; name another place with --output.")
    recording = read_run(run)
    found = ceilings(recording, latency_of(recording, calibration), seed=seed)
    for each in found:
        console.print(each.verdict)
    table = Table(title="Speed-up over autoregressive decoding", title_justify="left", box=None, pad_edge=False)
    table.add_column("steered by")
    for each in found:
        table.add_column(f"T = {each.temperature:g}", justify="right")
    for name in found[0].speedups:
        table.add_row(name, *(f"{each.speedups[name]:.2f}" for each in found))
    for name in found[0].auc:
        table.add_row(f"AUC of {name}", *(f"{each.auc[name]:.2f}" for each in found))
    table.add_row("window of the class oracle", *(str(each.window) for each in found))
    table.add_row(
        "nats needed to pay", *("-" if each.needed_nats is None else f"{each.needed_nats:.2f}" for each in found)
    )
    table.add_row("nats that the classes hold", *(f"{each.class_nats:.2f}" for each in found))
    console.print(table)
    if output is not None:
        write_text(output, json.dumps([asdict(each) for each in found], indent=2) + "\n")

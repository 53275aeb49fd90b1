"""`specbranch plot`: the figures of an exploration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import OutputDir, console


def plot(
    explored: Annotated[Path, typer.Option(help="Draw this folder of `specbranch explore`.")],
    output_dir: OutputDir,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="Take measured speeds from this run folder, such as validate's; by default from the explored run."
        ),
    ] = None,
) -> None:
    """Draw an exploration: draft lengths, branches, break-even map, acceptance by position, Pareto front."""
    from analysis.figures.figures import draw_figures

    for path in draw_figures(explored, output_dir, measured_dir=measured):
        console.print(f"figure {path}", highlight=False)

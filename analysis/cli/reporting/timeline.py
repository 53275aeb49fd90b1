"""`specbranch timeline`: a run for Perfetto, executor and simulator on neighbouring tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import MAX_COUNT, console, within


def timeline(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Read this folder of record, validate, compare or demo.")],
    output: Annotated[Path, typer.Option(help="Write the timeline to this new .json file.")] = Path("timeline.json"),
    max_requests: Annotated[
        int, typer.Option(callback=within(1, MAX_COUNT), help="Draw so many requests, the first ones of the run.")
    ] = 100,
) -> None:
    """Write a timeline for ui.perfetto.dev: what ran, and right below it what the simulator says of the same requests."""
    from analysis.cli.progress import progress_bar
    from analysis.report.overlay import draw_timeline

    with progress_bar(console, "requests", is_transient=True) as progress:
        drawn = draw_timeline(run, output, max_requests=max_requests, progress=progress)
    told = f"{drawn.num_requests} requests as they ran, {drawn.num_simulated} of them as simulated"
    if drawn.num_left_out:
        told += f"; {drawn.num_left_out} more were left out (--max-requests)"
    console.print(f"{told}.", highlight=False)
    if drawn.error is not None:
        console.print(f"Simulated decoding takes {1 + drawn.error:.1%} of the measured time.", highlight=False)
    console.print(f"Open {output} in ui.perfetto.dev; the file does not leave your machine.", highlight=False)

"""`specbranch report`: one HTML file about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import console


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of record, validate, compare, demo, explore, simulate or plan; two are compared.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Write the report to this new .html file.")] = Path("report.html"),
) -> None:
    """Write one HTML file about runs, with the verdict first; it opens without a network or a server."""
    from analysis.cli.progress import progress_bar
    from analysis.report.build import make_report

    with progress_bar(console, "sections", is_transient=True) as progress:
        make_report(runs, output, progress=progress)
    console.print(f"{output} ({output.stat().st_size / 1e6:.1f} MB): open it in a browser.", highlight=False)

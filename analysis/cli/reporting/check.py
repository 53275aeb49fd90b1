"""`specbranch check`: whether run folders are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import console

BROKEN = 1


def check(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Look through these run folders.")],
) -> None:
    """Look through run folders: whether every table can be read, no file was changed, and no token or round was lost."""
    from rich.markup import escape

    from traces.folder.audit import audit

    is_whole = True
    for folder in runs:
        found = audit(folder)
        state = "complete" if found.is_complete else "cut short: what stands here is a prefix of the run"
        sums = "no file was changed" if found.has_checksums else "without checksums"
        if found.num_requests is not None:
            counted = f"{found.num_requests} requests, {found.num_rounds} rounds, {found.num_ops} operations; "
        else:
            counted = ""
        changed = any("changed after the run" in problem for problem in found.problems)
        console.print(
            f"{folder}: {state}; {counted}{'' if changed else sums}".rstrip("; "), highlight=False, markup=False
        )
        for problem in found.problems:
            console.print(f"  [red]{escape(problem)}[/red]", highlight=False)
        is_whole &= not found.problems
    console.print("all is well." if is_whole else "something is wrong: copy the run again, or record it again.")
    if not is_whole:
        raise typer.Exit(BROKEN)

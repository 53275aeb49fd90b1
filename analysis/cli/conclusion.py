"""How a deciding command ends: with its verdict, in words or, with --json, as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from analysis.cli.options import console

if TYPE_CHECKING:
    from analysis.verdict import Verdict

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the verdict as JSON on standard output, and the tables on standard error.")
]


def console_for(as_json: bool) -> Console:
    """Where a command prints what is not its JSON."""
    return Console(stderr=True) if as_json else console


def conclude(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print the verdict of what a command has written. folders: the run that it started from, if any, and its own."""
    from analysis.report.answers import verdicts_of
    from analysis.verdict import verdict_lines

    verdicts = verdicts_of(folders)
    if as_json:
        print_json(verdicts, folders[-1])
        return
    console.print()
    for line in verdict_lines(verdicts):
        console.print(line, highlight=False, markup=False)


def print_json(verdicts: Sequence[Verdict], folder: Path) -> None:
    """The verdicts for programs, and the folder that they are about."""
    typer.echo(json.dumps({"verdicts": [each.as_dict() for each in verdicts], "folder": str(folder)}, indent=2))

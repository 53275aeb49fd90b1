"""Options that several commands share, and the console they print to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Beside a terminal nothing limits the width of a table.
console = Console(width=None if sys.stdout.isatty() else 120)

OutputDir = Annotated[Path, typer.Option("--output-dir", help="New folder for the results; never overwritten.")]
RunDir = Annotated[Path, typer.Option("--run", help="Run folder of `specbranch record`.")]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="Policy label such as fixed_length:draft_length=4; give it once for each policy."),
]
CalibrationFile = Annotated[Path | None, typer.Option(help="calibration.json; fitted from the run by default.")]
Temperatures = Annotated[list[float] | None, typer.Option("--temperature", help="Sampling temperature; repeatable.")]
Target = Annotated[str, typer.Option(help="Target model: Hugging Face id, folder, or `embedded`.")]
Draft = Annotated[str, typer.Option(help="Draft: id, folder, `embedded`, `embedded_small` or `prompt_lookup`.")]
DraftModel = Annotated[str, typer.Option(help="Draft model: id, folder, `embedded` or `embedded_small`.")]
Capacity = Annotated[int, typer.Option(help="Tokens a model's cache can hold.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

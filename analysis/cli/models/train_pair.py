"""`specbranch pair train`: make a pair like the embedded one."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.options import OutputDir, within


def train_pair(
    output_dir: OutputDir,
    preset: Annotated[str, typer.Option(help="Train with these settings: cpu, gpu or quick.")] = "cpu",
    device: Annotated[
        str | None, typer.Option(help="Train on this device, cpu or cuda; by default on the preset's.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(callback=within(0.01, 1e6), help="Shorten the schedule so that it ends within so many minutes."),
    ] = None,
) -> None:
    """Train a pair from the standard library's source, as the embedded one was."""
    from dataclasses import replace

    from executor.embedded_pair.settings import PRESETS, shortened
    from executor.embedded_pair.training.train import train_pair as train

    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(sorted(PRESETS))}.")
    settings = PRESETS[preset]()
    if device is not None:
        settings = replace(settings, device=device)
    if max_minutes is not None:
        settings = shortened(settings, max_minutes)
    train(settings, output_dir)

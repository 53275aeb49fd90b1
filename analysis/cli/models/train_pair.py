"""`specbranch pair train`: make a pair like the embedded one, or a draft for a pretrained target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import OutputDir, within

_EMBEDDED, _SUFFIX = "embedded", "-draft"


def train_pair(
    output_dir: OutputDir,
    model: Annotated[
        str, typer.Argument(help="Train this: embedded (a whole pair) or smollm2-draft (a draft for a fetched target).")
    ] = _EMBEDDED,
    preset: Annotated[
        str, typer.Option(help="Train a whole pair with these settings: cpu, gpu or quick; a draft has one.")
    ] = "cpu",
    device: Annotated[
        str | None, typer.Option(help="Train on this device, cpu or cuda; by default on the preset's, a draft on cpu.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            "--minutes",
            callback=within(0.01, 1e6),
            help="Shorten the schedule so that it ends within so many minutes; a draft takes 120 by default.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the draft whose training lies in the output folder.")
    ] = False,
    stage: Annotated[
        str,
        typer.Option(
            help="Of a draft's training do this: write (the target's conversations), learn (from them) or both, half of the "
            "time each."
        ),
    ] = "both",
    conversations: Annotated[
        Path | None,
        typer.Option(help="Keep and read a draft's conversations here; by default within the output folder."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Let a draft's target read the text files of this folder, too (.txt, .md, .rst, .py)."),
    ] = None,
) -> None:
    """Train a pair from the standard library's source, as the embedded one was, or a draft from its target's own answers."""
    if model == _EMBEDDED:
        if resume or conversations is not None or texts is not None or stage != "both":
            raise ValueError(
                "--resume, --stage, --conversations and --texts are for a draft: name it, for example smollm2-draft."
            )
        _train_embedded(output_dir, preset, device, max_minutes)
        return
    from executor.distilled_draft.settings import DraftSettings
    from executor.distilled_draft.training import Stage, train_draft

    name = model.removesuffix(_SUFFIX)
    if not model.endswith(_SUFFIX) or not name:
        raise ValueError(f"unknown model {model!r}: choose {_EMBEDDED}, smollm2{_SUFFIX}, or TARGET{_SUFFIX}.")
    if stage not in tuple(Stage):
        raise ValueError(f"unknown stage {stage!r}: choose {', '.join(Stage)}.")
    folder = train_draft(
        DraftSettings(target=name, device=device or "cpu"),
        output_dir,
        minutes=max_minutes or 120.0,
        stage=Stage(stage),
        resumes=resume,
        corpus=conversations,
        texts=texts,
    )
    if stage != Stage.WRITE:
        typer.echo(f"draft: {folder}; use it with: specbranch record --target {name} --draft {folder} ...")


def _train_embedded(output_dir: Path, preset: str, device: str | None, max_minutes: float | None) -> None:
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

"""`specbranch hrad train`: a predictor from collected data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import DataDir, NumEpochs, Seed, Widths, console


def train(
    data: DataDir,
    output_dir: Annotated[Path, typer.Option(help="Write the predictor to this folder, which must not hold one.")],
    widths: Widths = (256, 64),
    num_epochs: NumEpochs = 20,
    batch_size: Annotated[int, typer.Option(help="Take a step after this many positions.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="AdamW starts with this learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW shrinks weights at this rate.")] = 0.01,
    balanced: Annotated[
        bool,
        typer.Option(
            "--balanced", help="Leave the outputs as they are for balanced classes, without calibrating them."
        ),
    ] = False,
    num_feature_layers: Annotated[
        int | None,
        typer.Option(help="Look at this many of the last blocks that were collected; by default at all of them."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train a predictor on collected data."""
    from analysis.cli.progress import progress_bar
    from executor.hrad.dataset import load_dataset, with_last_layers
    from executor.hrad.predictor import CARD_NAME, save_predictor
    from executor.hrad.training import TrainingSettings
    from executor.hrad.training import train as train_predictor

    if (output_dir / CARD_NAME).exists():
        raise ValueError(f"{output_dir} already holds a predictor; name another folder.")
    settings = TrainingSettings(
        widths=widths,
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        is_calibrated=not balanced,
        seed=seed,
    )
    dataset = load_dataset(data)
    dataset = with_last_layers(dataset, num_feature_layers or dataset.meta.num_feature_layers)
    with progress_bar(console, "training") as report:
        trained = train_predictor(dataset, settings, progress=report)
    save_predictor(output_dir, trained.card, trained.network)
    metrics = trained.card.metrics
    console.print(
        f"held-back prompts: log-loss {metrics['log_loss']:.3f} (constant {metrics['constant_log_loss']:.3f}), "
        f"accuracy {metrics['accuracy']:.3f}, best after epoch {metrics['best_epoch']:.0f}"
    )
    console.print(f"predictor: {output_dir}")

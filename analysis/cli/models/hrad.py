"""`specbranch hrad`: collect data with a pair, train a predictor of acceptance, evaluate it on other prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import Capacity, DraftModel, OutputDir, Seed, Target, Temperatures, console

hrad_app = typer.Typer(
    help="H-RAD: predict from the target's features how much of a draft will be accepted.", no_args_is_help=True
)
DataDir = Annotated[Path, typer.Option("--data", help="Folder of `specbranch hrad collect`.")]


@hrad_app.command()
def collect(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: Annotated[str, typer.Option(help="`training`, or a .jsonl file of prompts.")] = "training",
    num_prompts: int = 120,
    skip_prompts: int = 0,
    temperature: Temperatures = None,
    max_new_tokens: int = 96,
    draft_length: Annotated[int, typer.Option(help="Tokens of the full draft that the classes speak of.")] = 8,
    num_feature_layers: Annotated[int, typer.Option(help="Last blocks of the target that are looked at.")] = 4,
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="static or hugging_face.")] = "static",
    device: str = "cpu",
    dtype: str = "float32",
    capacity: Capacity = 1024,
) -> None:
    """Decode training prompts with a pair and write down features and how far drafts were right."""
    from analysis.cli.progress import progress_bar
    from executor.hrad.collection import CollectSettings
    from executor.hrad.collection import collect as collect_data
    from executor.hrad.predictor import CLASS_NAMES

    settings = CollectSettings(
        target=target,
        draft=draft,
        prompts=prompts,
        num_prompts=num_prompts,
        skip_prompts=skip_prompts,
        temperatures=tuple(temperature or CollectSettings().temperatures),
        max_new_tokens=max_new_tokens,
        draft_length=draft_length,
        num_feature_layers=num_feature_layers,
        seed=seed,
        engine=engine,
        device=device,
        dtype=dtype,
        capacity=capacity,
    )
    with progress_bar(console, "decoding") as report:
        dataset = collect_data(settings, output_dir, progress=report)
    shares = ", ".join(f"{name} {(dataset.labels == index).mean():.1%}" for index, name in enumerate(CLASS_NAMES))
    console.print(f"{len(dataset)} positions: {shares}")
    console.print(f"data: {output_dir}")


@hrad_app.command()
def train(
    data: DataDir,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for the predictor; must hold none.")],
    widths: Annotated[tuple[int, int], typer.Option(help="Units of the two hidden layers.")] = (256, 64),
    num_epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Leave the outputs those of balanced classes, not calibrated.")
    ] = False,
    num_feature_layers: Annotated[
        int | None, typer.Option(help="Last blocks to look at, of those that were collected; all by default.")
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


@hrad_app.command()
def evaluate(
    predictor: Annotated[Path, typer.Option("--predictor", help="Folder of `specbranch hrad train`.")],
    data: DataDir,
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: Annotated[str, typer.Option(help="`held_out`, or a .jsonl file of prompts.")] = "held_out",
    num_prompts: int = 60,
    skip_prompts: int = 0,
    max_new_tokens: int = 96,
    markdown: Annotated[Path | None, typer.Option(help="Also write the result to this Markdown page.")] = None,
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="static or hugging_face.")] = "static",
    device: str = "cpu",
    dtype: str = "float32",
    capacity: Capacity = 1024,
) -> None:
    """Judge a predictor beside the baselines, on prompts that it was not trained on."""
    import torch

    from analysis.cli.progress import progress_bar
    from executor.hrad.collection import CollectSettings, prompt_keys
    from executor.hrad.collection import collect as collect_data
    from executor.hrad.dataset import Purpose, load_dataset
    from executor.hrad.evaluation import check_prompts_apart, measure_cost
    from executor.hrad.evaluation import evaluate as judge
    from executor.hrad.predictor import check_pair, load_predictor
    from executor.hrad.report import as_markdown, print_evaluation
    from executor.models.loading import load_engine
    from executor.recording.recorder import resolve_model

    loaded, training = load_predictor(predictor, device), load_dataset(data)
    target_path = resolve_model(target, "target")
    check_pair(loaded.card, target_path, resolve_model(draft, "draft"))
    settings = CollectSettings(
        purpose=Purpose.EVALUATION,
        target=target,
        draft=draft,
        prompts=prompts,
        num_prompts=num_prompts,
        skip_prompts=skip_prompts,
        temperatures=loaded.card.temperatures,
        max_new_tokens=max_new_tokens,
        draft_length=loaded.card.draft_length,
        num_feature_layers=loaded.card.num_feature_layers,
        seed=seed,
        engine=engine,
        device=device,
        dtype=dtype,
        capacity=capacity,
    )
    check_prompts_apart(loaded.card, prompt_keys(settings))
    with progress_bar(console, "decoding") as report:
        evaluation = collect_data(settings, output_dir, progress=report)
    torch.set_num_threads(1)  # as the target's process runs
    timed = load_engine(target_path, engine=engine, device=device, dtype=dtype, capacity=capacity)
    found = judge(loaded, training, evaluation, cost=measure_cost(loaded, timed), seed=seed)
    print_evaluation(console, found)
    text = json.dumps(asdict(found), indent=2) + "\n"
    (output_dir / "evaluation.json").write_text(text, encoding="utf-8")
    if markdown is not None:
        command = (
            f"specbranch hrad evaluate --predictor {predictor} --data DATA --output-dir NEW --num-prompts {num_prompts}"
        )
        markdown.write_text(as_markdown(found, loaded.card, command), encoding="utf-8")
    console.print(f"evaluation: {output_dir}")


@hrad_app.command()
def ablate(
    data: DataDir,
    output_dir: OutputDir,
    layers: Annotated[list[int] | None, typer.Option(help="K, last blocks looked at; repeatable.")] = None,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: Annotated[str, typer.Option(help="`held_out`, or a .jsonl file of prompts.")] = "held_out",
    num_prompts: int = 60,
    skip_prompts: int = 0,
    max_new_tokens: int = 96,
    num_epochs: int = 20,
    widths: Annotated[tuple[int, int], typer.Option(help="Units of the two hidden layers.")] = (256, 64),
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="static or hugging_face.")] = "static",
    device: str = "cpu",
    dtype: str = "float32",
    capacity: Capacity = 1024,
) -> None:
    """Train and judge a predictor for each number of the target's last blocks, on the same positions."""
    from analysis.cli.progress import progress_bar
    from executor.hrad.ablation import ablate_layers
    from executor.hrad.collection import CollectSettings
    from executor.hrad.collection import collect as collect_data
    from executor.hrad.dataset import Purpose, load_dataset, with_last_layers
    from executor.hrad.report import print_ablation
    from executor.hrad.training import TrainingSettings

    training, wanted = load_dataset(data), tuple(layers or (1, 4, 8))
    for count in wanted:
        with_last_layers(training, count)  # refused before anything is decoded
    settings = CollectSettings(
        purpose=Purpose.EVALUATION,
        target=target,
        draft=draft,
        prompts=prompts,
        num_prompts=num_prompts,
        skip_prompts=skip_prompts,
        temperatures=training.meta.temperatures,
        max_new_tokens=max_new_tokens,
        draft_length=training.meta.draft_length,
        num_feature_layers=max(wanted),
        seed=seed,
        engine=engine,
        device=device,
        dtype=dtype,
        capacity=capacity,
    )
    with progress_bar(console, "decoding") as report:
        evaluation = collect_data(settings, output_dir, progress=report)
    with progress_bar(console, "training") as report:
        chosen = TrainingSettings(widths=widths, num_epochs=num_epochs, seed=seed)
        results = ablate_layers(training, evaluation, wanted, chosen, progress=report)
    print_ablation(console, results)
    text = json.dumps([asdict(result) for result in results], indent=2) + "\n"
    (output_dir / "ablation.json").write_text(text, encoding="utf-8")
    console.print(f"ablation: {output_dir}")

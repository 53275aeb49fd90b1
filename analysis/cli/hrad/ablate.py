"""`specbranch hrad ablate`: how many of the target's blocks a predictor needs, and at which draft lengths it pays."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from analysis.cli.hrad.pair import pair_of
from analysis.cli.options import (
    AllowVocabDifference,
    Capacity,
    Chat,
    DataDir,
    Device,
    DraftModel,
    DType,
    Engine,
    HeldOutPrompts,
    IgnoreGenerationConfig,
    MaxNewTokens,
    NumEpochs,
    NumPrompts,
    OutputDir,
    Seed,
    SkipPrompts,
    Target,
    TrustRemoteCode,
    Widths,
    console,
    prompt_form,
    within,
)
from traces.files import write_text

_LENGTHS = (2, 4, 8)


def ablate(
    data: DataDir,
    output_dir: OutputDir,
    layers: Annotated[
        list[int] | None,
        typer.Option(callback=within(1, 1024), help="Look at this many of the last blocks; give it once for each."),
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--draft-length",
            callback=within(2, 1024),
            help="Compare H-RAD with the draft's own signals at this draft length; give it once for each. By default at 2, 4 "
            "and 8, as far as the data goes.",
        ),
    ] = None,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: HeldOutPrompts = "held_out",
    chat: Chat = None,
    num_prompts: NumPrompts = 60,
    skip_prompts: SkipPrompts = 0,
    max_new_tokens: MaxNewTokens = 96,
    num_epochs: NumEpochs = 20,
    widths: Widths = (256, 64),
    seed: Seed = 0,
    engine: Engine = "static",
    device: Device = "cpu",
    dtype: DType = "float32",
    capacity: Capacity = 1024,
    ignore_generation_config: IgnoreGenerationConfig = False,
    allow_vocab_difference: AllowVocabDifference = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train and judge predictors on the same positions: by the number of the target's last blocks, and by draft length."""
    from analysis.cli.progress import progress_bar
    from executor.hrad.ablation import ablate_layers, ablate_lengths
    from executor.hrad.collection import CollectSettings
    from executor.hrad.collection import collect as collect_data
    from executor.hrad.dataset import Purpose, load_dataset, with_draft_length, with_last_layers
    from executor.hrad.report import print_ablation, print_lengths
    from executor.hrad.training import TrainingSettings
    from executor.recording.settings import DecodingSettings, PromptSettings

    training, wanted = load_dataset(data), tuple(layers or (1, 4, 8))
    for count in wanted:
        with_last_layers(training, count)  # refused before anything is decoded
    known = training.meta.draft_length
    at = tuple(lengths or [length for length in _LENGTHS if length <= known] or [known])
    for length in at:
        with_draft_length(training, length)
    settings = CollectSettings(
        purpose=Purpose.EVALUATION,
        pair=pair_of(
            target=target,
            draft=draft,
            engine=engine,
            device=device,
            dtype=dtype,
            capacity=capacity,
            ignore_generation_config=ignore_generation_config,
            allow_vocab_difference=allow_vocab_difference,
            trust_remote_code=trust_remote_code,
        ),
        prompts=PromptSettings(source=prompts, num=num_prompts, skip=skip_prompts, form=prompt_form(chat)),
        decoding=DecodingSettings(temperatures=training.meta.temperatures, max_new_tokens=max_new_tokens, seed=seed),
        draft_length=training.meta.draft_length,
        num_feature_layers=max(wanted),
    )
    with progress_bar(console, "decoding") as report:
        evaluation = collect_data(settings, output_dir, progress=report)
    with progress_bar(console, "training") as report:
        chosen = TrainingSettings(widths=widths, num_epochs=num_epochs, seed=seed)
        results = ablate_layers(training, evaluation, wanted, chosen, progress=report)
    with progress_bar(console, "training") as report:
        by_length = ablate_lengths(training, evaluation, at, chosen, progress=report)
    print_ablation(console, results)
    print_lengths(console, by_length)
    for name, rows in (("ablation.json", results), ("draft_lengths.json", by_length)):
        text = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
        write_text(output_dir / name, text)
    console.print(f"ablation: {output_dir}")

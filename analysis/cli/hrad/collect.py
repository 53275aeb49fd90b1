"""`specbranch hrad collect`: features of the target and what became of drafts there."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.hrad.pair import pair_of
from analysis.cli.options import (
    AllowVocabDifference,
    Capacity,
    Chat,
    Device,
    DraftModel,
    DType,
    Engine,
    IgnoreGenerationConfig,
    MaxNewTokens,
    NumPrompts,
    OutputDir,
    Seed,
    SkipPrompts,
    Target,
    Temperatures,
    TrustRemoteCode,
    console,
    prompt_form,
    within,
)


def collect(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: Annotated[str, typer.Option(help="Use these prompts: `training`, or a .jsonl file.")] = "training",
    chat: Chat = None,
    num_prompts: NumPrompts = 120,
    skip_prompts: SkipPrompts = 0,
    temperature: Temperatures = None,
    max_new_tokens: MaxNewTokens = 96,
    draft_length: Annotated[
        int,
        typer.Option(callback=within(1, 1024), help="Classes tell how much of a draft of so many tokens is accepted."),
    ] = 8,
    num_feature_layers: Annotated[
        int, typer.Option(callback=within(1, 1024), help="Take features from this many of the target's last blocks.")
    ] = 4,
    seed: Seed = 0,
    engine: Engine = "static",
    device: Device = "cpu",
    dtype: DType = "float32",
    capacity: Capacity = 1024,
    ignore_generation_config: IgnoreGenerationConfig = False,
    allow_vocab_difference: AllowVocabDifference = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Decode training prompts with a pair and write down features and how far drafts were right."""
    from analysis.cli.progress import progress_bar
    from executor.hrad.collection import CollectSettings
    from executor.hrad.collection import collect as collect_data
    from executor.hrad.predictor import CLASS_NAMES
    from executor.recording.settings import DecodingSettings, PromptSettings

    settings = CollectSettings(
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
        decoding=DecodingSettings(
            temperatures=tuple(temperature or CollectSettings().decoding.temperatures),
            max_new_tokens=max_new_tokens,
            seed=seed,
        ),
        draft_length=draft_length,
        num_feature_layers=num_feature_layers,
    )
    with progress_bar(console, "decoding") as report:
        dataset = collect_data(settings, output_dir, progress=report)
    shares = ", ".join(f"{name} {(dataset.labels == index).mean():.1%}" for index, name in enumerate(CLASS_NAMES))
    console.print(f"{len(dataset)} positions: {shares}")
    console.print(f"data: {output_dir}")

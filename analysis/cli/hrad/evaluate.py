"""`specbranch hrad evaluate`: a predictor beside the baselines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
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
    NumPrompts,
    OutputDir,
    Seed,
    SkipPrompts,
    Target,
    TrustRemoteCode,
    console,
    prompt_form,
)
from traces.files import write_text


def evaluate(
    predictor: Annotated[Path, typer.Option(help="Judge the predictor of this folder of `specbranch hrad train`.")],
    data: DataDir,
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: DraftModel = "embedded",
    prompts: HeldOutPrompts = "held_out",
    chat: Chat = None,
    num_prompts: NumPrompts = 60,
    skip_prompts: SkipPrompts = 0,
    max_new_tokens: MaxNewTokens = 96,
    markdown: Annotated[Path | None, typer.Option(help="Write the result to this Markdown page as well.")] = None,
    seed: Seed = 0,
    engine: Engine = "static",
    device: Device = "cpu",
    dtype: DType = "float32",
    capacity: Capacity = 1024,
    ignore_generation_config: IgnoreGenerationConfig = False,
    allow_vocab_difference: AllowVocabDifference = False,
    trust_remote_code: TrustRemoteCode = False,
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
    from executor.models.names import resolve_model
    from executor.recording.settings import DecodingSettings, PromptSettings

    loaded, training = load_predictor(predictor, device), load_dataset(data)
    target_path = resolve_model(target, "target")
    check_pair(loaded.card, target_path, resolve_model(draft, "draft"))
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
        decoding=DecodingSettings(temperatures=loaded.card.temperatures, max_new_tokens=max_new_tokens, seed=seed),
        draft_length=loaded.card.draft_length,
        num_feature_layers=loaded.card.num_feature_layers,
    )
    check_prompts_apart(loaded.card, prompt_keys(settings))
    with progress_bar(console, "decoding") as report:
        evaluation = collect_data(settings, output_dir, progress=report)
    torch.set_num_threads(1)  # as the target's process runs
    timed = load_engine(target_path, settings.pair.target_engine)
    evaluated = judge(loaded, training, evaluation, cost=measure_cost(loaded, timed), seed=seed)
    print_evaluation(console, evaluated)
    text = json.dumps(asdict(evaluated), indent=2) + "\n"
    write_text(output_dir / "evaluation.json", text)
    if markdown is not None:
        command = (
            f"specbranch hrad evaluate --predictor {predictor} --data DATA --output-dir NEW --num-prompts {num_prompts}"
        )
        write_text(markdown, as_markdown(evaluated, loaded.card, command))
    console.print(f"evaluation: {output_dir}")

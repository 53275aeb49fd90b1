"""`specbranch compare`: every method on the same prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.conclusion import AsJson, conclude, console_for
from analysis.cli.options import (
    MAX_COUNT,
    NOT_IDENTICAL,
    AllowVocabDifference,
    Draft,
    Hrad,
    IgnoreGenerationConfig,
    MaxNewTokens,
    MaxSeconds,
    OutputDir,
    Precision,
    Quick,
    Repeats,
    Seed,
    Target,
    Temperatures,
    TrustRemoteCode,
    within,
)


def compare(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: Draft = "embedded",
    hrad: Hrad = "",
    pair: Annotated[
        str,
        typer.Option(
            help="Compare on this pair, embedded or smollm2, with prompts to suit, in place of --target and --draft."
        ),
    ] = "",
    prompts: Annotated[
        str,
        typer.Option(
            help="Use these prompts: `held_out`, `questions`, or a .jsonl file; by default those of the pair."
        ),
    ] = "",
    temperature: Temperatures = None,
    num_prompts: Annotated[
        int,
        typer.Option(
            callback=within(1, MAX_COUNT), help="Calibrate on this many prompts, and measure on as many others."
        ),
    ] = 32,
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 1,
    seed: Seed = 0,
    precision: Precision = "",
    max_seconds: MaxSeconds = 0.0,
    quick: Quick = False,
    ignore_generation_config: IgnoreGenerationConfig = False,
    allow_vocab_difference: AllowVocabDifference = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Every method on the same prompts, each with the settings that the simulator chose: measured beside predicted."""
    from executor.remote.starting import start_ahead

    start_ahead()  # it imports while we do
    from analysis.check.compare import compare as compare_methods
    from analysis.check.compare import models_of
    from analysis.check.comparison import print_comparison
    from analysis.check.precision import Effort
    from analysis.cli.progress import progress_bar
    from analysis.tuning.ablation import print_ablation, read_ablation
    from analysis.tuning.what_if import print_what_if, read_what_if

    target, draft, prompts = models_of(pair, target=target, draft=draft, prompts=prompts)
    told = console_for(as_json)
    effort = Effort.of(precision, max_seconds)
    rows = compare_methods(
        output_dir,
        target=target,
        draft=draft,
        hrad=hrad,
        prompts=prompts,
        temperatures=temperature or ([1.0] if quick else [0.0, 1.0]),
        num_prompts=min(num_prompts, 6) if quick else num_prompts,
        max_new_tokens=min(max_new_tokens, 48) if quick else max_new_tokens,
        repeats=repeats,
        is_quick=quick,
        effort=effort,
        seed=seed,
        ignores_generation_config=ignore_generation_config,
        allows_vocab_difference=allow_vocab_difference,
        trusts_remote_code=trust_remote_code,
        progress=lambda title: progress_bar(told, title),
    )
    elsewhere = read_what_if(output_dir)
    print_comparison(told, rows, elsewhere.simulated)
    print_what_if(told, elsewhere)
    print_ablation(told, read_ablation(output_dir))
    told.print(f"run folders: {output_dir}")
    conclude([output_dir], as_json=as_json)
    if not all(row.is_identical for row in rows):
        raise typer.Exit(NOT_IDENTICAL)

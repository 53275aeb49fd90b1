"""Options that several commands share, and the console they print to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

NOT_IDENTICAL = 3  # exit code of a command whose tokens or rounds are not those that they should be

# Beside a terminal nothing limits the width of a table.
console = Console(width=None if sys.stdout.isatty() else 120)

MAX_SEED = (1 << 64) - 1
MAX_COUNT = 1_000_000  # of prompts, repeats and the like: more than anybody waits for
MAX_TOKENS = 1 << 20  # of an answer
MAX_CAPACITY = 1 << 24


def within(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], Any]:
    """What typer calls with an option's value: it refuses, by the option's name, numbers that are not finite or do not lie in
    [low, high]. Values may be a number, a list of them, or None."""

    def check(value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not (math.isfinite(number) and low <= number <= high):
                span = " and ".join(
                    [f"at least {low:.12g}"] * math.isfinite(low) + [f"at most {high:.12g}"] * math.isfinite(high)
                )
                raise typer.BadParameter(f"it must be {span or 'a finite number'}, but got {number}.")
        return value

    return check


def own_policies(labels: list[str] | None) -> list[str] | None:
    """What typer calls with the policies that a user typed: modules of the user's own policies are imported."""
    from sim.decoding.policies.catalog import POLICIES, split_label
    from sim.decoding.policies.own import import_own

    return (
        None
        if labels is None
        else [label if split_label(label)[0] in POLICIES else import_own(label) for label in labels]
    )


OutputDir = Annotated[Path, typer.Option(help="Write the results to this new folder; nothing is ever overwritten.")]
RunDir = Annotated[Path, typer.Option("--run", help="Read this run folder of `specbranch record`.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        callback=own_policies,
        help="Use this policy, such as fixed_length:draft_length=4, or a method's name alone, whose settings then follow from "
        "the measured costs, or a class of your own, module:Class(setting=value); give it once for each policy.",
    ),
]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="Take latencies from this file; by default they are fitted from the run.")
]
Temperatures = Annotated[
    list[float] | None,
    typer.Option("--temperature", callback=within(), help="Sample at this temperature; give it once for each one."),
]
Seed = Annotated[int, typer.Option(callback=within(0, MAX_SEED), help="Everything random follows from this seed.")]
Quick = Annotated[bool, typer.Option("--quick", help="Do less, so that it ends in under a minute.")]

Target = Annotated[str, typer.Option(help="The target model is this Hugging Face id or folder, or `embedded`.")]
Draft = Annotated[
    str, typer.Option(help="The draft is this id or folder, or `embedded`, `embedded_small` or `prompt_lookup`.")
]
DraftModel = Annotated[
    str, typer.Option(help="The draft model is this id or folder, or `embedded` or `embedded_small`.")
]
Engine = Annotated[str, typer.Option(help="Run the models on this engine: static or hugging_face.")]
Device = Annotated[str, typer.Option(help="Run the models on this device: cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option(help="Compute in this number format: float32, float16 or bfloat16.")]
AllowVocabDifference = Annotated[
    bool,
    typer.Option(
        "--allow-vocab-difference", help="Accept tokenizers that differ in a few tokens, over the ids that both have."
    ),
]
IgnoreGenerationConfig = Annotated[
    bool,
    typer.Option(
        "--ignore-generation-config",
        help="Leave out the rules of the target's generation_config, such as its repetition penalty.",
    ),
]
Hrad = Annotated[str, typer.Option(help="Predict acceptance with the H-RAD predictor of this folder, or `embedded`.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a model's folder brings. Read it first.")
]
Capacity = Annotated[
    int, typer.Option(callback=within(1, MAX_CAPACITY), help="Each model's cache holds this many tokens.")
]

HeldOutPrompts = Annotated[str, typer.Option(help="Use these prompts: `held_out`, or a .jsonl file.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Give texts to the model as a user's messages in its chat template, or as they stand; by default as messages "
        "where the model has a template and all texts are questions or turns.",
    ),
]
NumPrompts = Annotated[int, typer.Option(callback=within(1, MAX_COUNT), help="Use this many prompts.")]
SkipPrompts = Annotated[
    int, typer.Option(callback=within(0, MAX_COUNT), help="Leave out this many prompts at the beginning.")
]
MaxNewTokens = Annotated[
    int, typer.Option(callback=within(1, MAX_TOKENS), help="End each answer after this many tokens.")
]
Repeats = Annotated[int, typer.Option(callback=within(1, MAX_COUNT), help="Run every prompt this many times.")]


def prompt_form(chat: bool | None) -> Any:
    """The form of prompts that --chat or --raw, or neither, asks for."""
    from executor.recording.settings import PromptForm

    return PromptForm.AUTO if chat is None else PromptForm.CHAT if chat else PromptForm.RAW


DataDir = Annotated[Path, typer.Option("--data", help="Read this folder of `specbranch hrad collect`.")]
NumEpochs = Annotated[int, typer.Option(callback=within(1, MAX_COUNT), help="Go through the data this many times.")]
Widths = Annotated[
    tuple[int, int],
    typer.Option(callback=within(1, MAX_COUNT), help="The two hidden layers have these numbers of units."),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Stop measuring when every speed-up is known this well: half its 95% interval, as a percentage such as 3%."
    ),
]
MaxSeconds = Annotated[
    float, typer.Option(callback=within(0), help="Measure no longer than this many seconds; 0 is without end.")
]

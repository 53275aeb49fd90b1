"""Where prompts come from: the embedded pair's held-out functions, or a JSON-lines file of anybody's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from executor.embedded_pair.corpus import held_out_prompts, training_prompts

TEXT_FIELDS = ("prompt", "text", "question", "turns")


class PromptText(NamedTuple):
    """A prompt and the name it keeps across runs."""

    prompt_id: str
    text: str


def load_prompts(source: str, num: int, *, skip: int = 0) -> list[PromptText]:
    """`num` prompts after the first `skip`. source: "held_out" or "training" (functions of the standard library that the
    embedded pair did not, or did, train on), or a .jsonl or .jsonl.gz file with a field prompt, text, question or turns."""
    if num < 1:
        raise ValueError(f"num_prompts must be at least 1, but got {num}.")
    if source in ("held_out", "training"):
        choose = held_out_prompts if source == "held_out" else training_prompts
        prompts = [PromptText(prompt.name, prompt.text) for prompt in choose(skip + num)][skip:]
    else:
        prompts = _read_file(Path(source), skip + num)[skip:]
    if len(prompts) < num:
        raise ValueError(f"{source} holds {skip + len(prompts)} prompts, but {skip + num} were asked for.")
    return prompts


def _read_file(path: Path, num: int) -> list[PromptText]:
    if not path.is_file():
        raise ValueError(f"no prompts at {path}; name a .jsonl file, or held_out, or training.")
    opener = gzip.open if path.suffix == ".gz" else open
    prompts: list[PromptText] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if len(prompts) == num:
                break
            try:
                row = json.loads(line)
                field = next(field for field in TEXT_FIELDS if field in row)
            except (ValueError, StopIteration, TypeError):
                raise ValueError(
                    f"{path}, line {number}: no JSON object with one of the fields {', '.join(TEXT_FIELDS)}."
                ) from None
            text = row[field][0] if isinstance(row[field], list) else row[field]
            prompts.append(PromptText(f"{path.name}:{number}", str(text)))
    return prompts

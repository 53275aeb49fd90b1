"""Text at hand as training text: the target reads it and its laws are kept, which costs a third of letting it write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from executor.distilled_draft.corpus import Role, Shard, added_mask, empty_shard, top_laws, write_shard
from executor.distilled_draft.settings import Say, WritingPlan

SUFFIXES = (".txt", ".md", ".rst", ".py")
_LEAST_TOKENS = 48  # of a piece: the first tokens of a text can hardly be guessed
_STREAMS_A_FORWARD = 4  # bounds the memory of logits


def read_texts(folder: Path) -> list[str]:
    """The text files below a folder, in the order of their paths. Raises ValueError where there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    if not any(text.strip() for text in texts):
        raise ValueError(f"no text below {folder}: give a folder with files that end in {', '.join(SUFFIXES)}.")
    return texts


def write_text_shards(
    target: Any, tokenizer: Any, texts: list[str], plan: WritingPlan, folder: Path, *, minutes: float, say: Say = print
) -> None:
    """Add shards of pieces of the texts to a folder for so many minutes, at least one; one that is there is kept.

    Raises ValueError for a vocabulary of more than 65,536 tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, number, is_new = time.monotonic(), 0, False
    while not is_new or time.monotonic() - started < 60 * minutes:
        path = folder / f"shard-text-{number:04d}.npz"
        if not path.is_file():
            write_shard(_labelled(target, tokenizer, texts, plan, number), path)
            say(
                f"text shard {number}: {plan.num_streams * plan.length} tokens, {time.monotonic() - started:.0f} s so far"
            )
            is_new = True
        number += 1


@torch.inference_mode()
def _labelled(target: Any, tokenizer: Any, texts: list[str], plan: WritingPlan, number: int) -> Shard:
    """Shard `number`: pieces of random texts from random lines on, one after another, with the target's laws."""
    shard = empty_shard(plan, target.config.vocab_size)
    shard.roles[:] = Role.TEXT
    pieces = _pieces(tokenizer, texts, plan.length, np.random.default_rng([plan.seed, 1, number]))
    for stream in range(plan.num_streams):
        position = 0
        while position < plan.length:
            piece = next(pieces)[: plan.length - position]
            shard.tokens[stream, position : position + len(piece)] = piece
            shard.starts[stream, position : position + len(piece)] = position
            position += len(piece)
    for first in range(0, plan.num_streams, _STREAMS_A_FORWARD):
        some = slice(first, first + _STREAMS_A_FORWARD)
        begins = torch.from_numpy(shard.starts[some].astype(np.int64)).to(target.device)
        logits = target(
            input_ids=torch.from_numpy(shard.tokens[some].astype(np.int64)).to(target.device),
            position_ids=torch.arange(plan.length, device=target.device) - begins,
            attention_mask=added_mask(begins),
            use_cache=False,
        ).logits.float()
        shard.top_tokens[some], shard.top_log_probs[some] = top_laws(logits, shard.top_tokens.shape[-1])
    return shard


def _pieces(tokenizer: Any, texts: list[str], length: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Pieces of at most `length` tokens, each from the beginning of a line of a random text; longer texts more often."""
    shares = np.array([len(text) for text in texts], float)
    while True:
        text = texts[int(rng.choice(len(texts), p=shares / shares.sum()))]
        begin = text.find("\n", int(rng.integers(len(text)))) + 1  # 0, the text's beginning, after the last line
        piece = tokenizer.encode(text[begin : begin + 12 * length], add_special_tokens=False)[:length]
        if len(piece) >= min(_LEAST_TOKENS, length) or len(text) < 12 * _LEAST_TOKENS:
            yield list(piece) or [0]

"""The target's own conversations as training text: shards of token streams, with the target's laws beside every token."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.distilled_draft.settings import WritingPlan
from traces.files import whole_file

LARGEST_VOCABULARY = 1 << 16  # ids are stored in 16 bits
HELD_OUT_SHARE = 1 / 32
_PATTERN = "shard-*.npz"
_LEAST_MASS = 1e-3  # of the lowest id, over all positions: ids of byte-pair tokens rise as tokens get rarer


class Role(enum.IntEnum):
    """Where a token comes from."""

    GIVEN = 0  # the chat template, or an opening of ours
    PROMPT = 1  # a prompt that the target made up
    ANSWER = 2
    TEXT = 3  # plain text without a template


# How much a position counts in training, by the role of the token that it predicts: drafts are used on answers.
_WEIGHTS = np.array([0.1, 0.3, 1.0, 0.5], np.float32)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some streams of equal length; one stream holds conversations one after another, none of which sees another.

    tokens, roles, starts: (streams, length); starts: where the token's conversation begins. temperatures: (streams, length),
    that it was sampled at. top_tokens, top_log_probs: (streams, length, top), the target's most probable next tokens after
    each token, at temperature 1.
    """

    tokens: NDArray[np.uint16]
    roles: NDArray[np.uint8]
    starts: NDArray[np.int16]
    temperatures: NDArray[np.float16]
    top_tokens: NDArray[np.uint16]
    top_log_probs: NDArray[np.float16]

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(streams, length): how much predicting the next token counts; 0 at a conversation's end."""
        weights = np.zeros(self.tokens.shape, np.float32)
        goes_on = self.starts[:, 1:] == self.starts[:, :-1]
        weights[:, :-1] = np.where(goes_on, _WEIGHTS[self.roles[:, 1:]], 0)
        return weights

    @cached_property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(streams, length): whether the token's conversation is kept from training. Its prompt's tokens decide, so that one
        prompt never stands on both sides."""
        held_out = np.zeros(self.tokens.shape, bool)
        for stream, starts in enumerate(self.starts):
            for start in np.unique(starts):
                own = np.flatnonzero(starts == start)
                answer = np.flatnonzero(self.roles[stream, own] == Role.ANSWER)
                prompt = self.tokens[stream, own[: answer[0]] if len(answer) else own[:24]]
                held_out[stream, own] = zlib.crc32(prompt.tobytes()) < HELD_OUT_SHARE * (1 << 32)
        return held_out


def write_shard(shard: Shard, path: Path) -> None:
    """Write a shard at once: a broken-off writing leaves no file of this name."""
    with whole_file(path) as place, place.open("wb") as file:
        np.savez(file, **{name: getattr(shard, name) for name in Shard.__dataclass_fields__})


def empty_shard(plan: WritingPlan, vocab_size: int) -> Shard:
    """A shard of a plan's size, yet to be filled. Raises ValueError for a vocabulary whose ids do not fit."""
    if vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"shards hold ids below {LARGEST_VOCABULARY}, but the target has {vocab_size}.")
    size, num_top = (plan.num_streams, plan.length), min(plan.num_top, vocab_size)
    return Shard(
        tokens=np.zeros(size, np.uint16),
        roles=np.zeros(size, np.uint8),
        starts=np.zeros(size, np.int16),
        temperatures=np.zeros(size, np.float16),
        top_tokens=np.zeros((*size, num_top), np.uint16),
        top_log_probs=np.zeros((*size, num_top), np.float16),
    )


def top_laws(logits: Tensor, num_top: int) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """A shard's top_tokens and top_log_probs of logits (..., vocab): (..., num_top) each."""
    best = (logits - logits.logsumexp(-1, keepdim=True)).topk(num_top)
    return best.indices.cpu().numpy().astype(np.uint16), best.values.cpu().numpy().astype(np.float16)


def shard_paths(folder: Path) -> list[Path]:
    """The whole shards of a folder, in the order of their names."""
    return [path for path in sorted(folder.glob(_PATTERN)) if not path.name.endswith(".part.npz")]


def read_shard(path: Path) -> Shard:
    """Raises ValueError for a file that cannot be read."""
    try:
        with np.load(path) as arrays:
            return Shard(**{name: arrays[name] for name in Shard.__dataclass_fields__})
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no shard of conversations ({error}): remove it.") from error


def block_mask(starts: Tensor) -> Tensor:
    """(streams, length) starts -> (streams, 1, length, length): whether a row may look at a column; True where it may."""
    index = torch.arange(starts.shape[1], device=starts.device)
    return ((index[:, None] >= index) & (index >= starts[:, :, None]))[:, None]


def added_mask(starts: Tensor) -> Tensor:
    """`block_mask` as what is added to scores: 0 where a row may look, else -inf."""
    return torch.zeros(1, device=starts.device).masked_fill(~block_mask(starts), float("-inf"))


@dataclass(frozen=True)
class Batch:
    """Streams for one step.

    tokens, positions, starts: (streams, length). weights: (streams, length), 0 where nothing is learnt. top_tokens, top_probs:
    (positions with a weight, top), in the order of weights.nonzero().
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    weights: Tensor
    top_tokens: Tensor
    top_probs: Tensor


class Corpus:
    """All conversations of a folder in memory (0.14 GB a million tokens with 32 probabilities each)."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where there are none, or streams of several lengths."""
        self._folder, self._known = folder, set[Path]()
        self.shards: list[Shard] = []
        self._rows: list[tuple[int, int]] = []
        self._held_out: list[tuple[int, int]] = []
        self.refresh()
        if not self.shards:
            raise ValueError(f"no conversations in {folder}: let the target write some first.")

    def refresh(self) -> None:
        """Read the shards that have been written since, by this process or another. Raises ValueError as the start does."""
        for path in shard_paths(self._folder):
            if path in self._known:
                continue
            shard, index = read_shard(path), len(self.shards)
            if self.shards and shard.tokens.shape[1] != self.shards[0].tokens.shape[1]:
                raise ValueError(f"the streams in {self._folder} have several lengths: keep those of one length.")
            self._known.add(path)
            self.shards.append(shard)
            rows = [(index, row) for row in range(len(shard.tokens))]
            self._rows += rows
            self._held_out += [(index, row) for _, row in rows if self._answers_held_out(shard, row).any()]

    @property
    def num_tokens(self) -> int:
        """In all streams."""
        return sum(shard.tokens.size for shard in self.shards)

    def frequent_tokens(self, num_tokens: int, vocab_size: int) -> Tensor:
        """Ids of the tokens with the largest probability in answers and plain text, ascending: (num_tokens,)."""
        mass = _LEAST_MASS / (1.0 + np.arange(vocab_size))
        for shard in self.shards:
            is_used = shard.weights >= _WEIGHTS[Role.TEXT]
            np.add.at(
                mass, shard.top_tokens[is_used].ravel(), np.exp(shard.top_log_probs[is_used].astype(float)).ravel()
            )
        return torch.from_numpy(np.sort(np.argsort(-mass, kind="stable")[:num_tokens]))

    def training_batch(self, num_streams: int, rng: np.random.Generator) -> Batch:
        """Random streams, what is held out without weight."""
        chosen = [self._rows[index] for index in rng.integers(len(self._rows), size=num_streams)]
        return self._batch(chosen, is_held_out=False)

    def held_out_batches(self, num_streams: int, most: int) -> Iterator[Batch]:
        """The streams with answers that are held out, at most so many, with weights on these answers alone."""
        for first in range(0, min(most, len(self._held_out)), num_streams):
            yield self._batch(self._held_out[first : min(first + num_streams, most)], is_held_out=True)

    @staticmethod
    def _answers_held_out(shard: Shard, row: int) -> NDArray[np.bool_]:
        held_out: NDArray[np.bool_] = (shard.weights[row] == 1) & shard.is_held_out[row]
        return held_out

    def _batch(self, chosen: list[tuple[int, int]], *, is_held_out: bool) -> Batch:
        shards = [(self.shards[index], row) for index, row in chosen]
        tokens = np.stack([shard.tokens[row] for shard, row in shards]).astype(np.int64)
        starts = np.stack([shard.starts[row] for shard, row in shards]).astype(np.int64)
        weights = np.stack([shard.weights[row] for shard, row in shards])
        held_out = np.stack([shard.is_held_out[row] for shard, row in shards])
        is_wanted = (weights == 1) & held_out if is_held_out else ~held_out
        weights = np.where(is_wanted, weights, np.float32(0))
        is_used = weights > 0
        top_tokens = np.stack([shard.top_tokens[row] for shard, row in shards])[is_used]
        top_log_probs = np.stack([shard.top_log_probs[row] for shard, row in shards])[is_used]
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(np.arange(tokens.shape[1]) - starts),
            torch.from_numpy(starts),
            torch.from_numpy(weights),
            torch.from_numpy(top_tokens.astype(np.int64)),
            torch.from_numpy(np.exp(top_log_probs.astype(np.float32))),
        )

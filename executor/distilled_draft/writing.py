"""Let a target write conversations with itself: many streams side by side, one token of each a forward."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from executor.distilled_draft.conversations import Conversations, Template
from executor.distilled_draft.corpus import Role, Shard, empty_shard, top_laws, write_shard
from executor.distilled_draft.settings import Say, WritingPlan
from executor.models.engines.hugging_face import cache_argument

_GROUPED = "specbranch_grouped"
_PROMPT_REACH = 3.0  # a prompt's tokens are sampled among those at most so much below the best logit: whole sentences


class _Slots(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """One block's keys and values in place, made once for all positions: appending copies one token, not the cache."""

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self._num_positions, self._length = num_positions, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append one token of every stream, (streams, kv heads, 1, head_dim); all so far, (streams, kv heads, n, head_dim)."""
        if self._length == 0:
            streams, heads, width = key_states.shape[0], key_states.shape[1], key_states.shape[3]
            self._keys = key_states.new_zeros(streams, heads, self._num_positions, width)
            self._values = torch.zeros_like(self._keys)
        slot = slice(self._length, self._length + 1)
        self._keys[:, :, slot], self._values[:, :, slot] = key_states, value_states
        self._length += 1
        return self._keys[:, :, : self._length], self._values[:, :, : self._length]

    def get_seq_length(self) -> int:
        """Tokens of each stream so far."""
        return self._length


def grouped_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention of one token a stream, without copies of keys for every query head of a group.

    query: (streams, heads, 1, head_dim). key, value: (streams, kv heads, n, head_dim). mask: (streams, 1, 1, n), to be added.
    Returns (streams, 1, heads, head_dim).
    """
    streams, num_heads, _num_new, width = query.shape
    groups = query.reshape(streams, key.shape[1], -1, width)
    scores = torch.matmul(groups, key.transpose(2, 3)) * scaling + mask
    mixed = torch.matmul(scores.softmax(-1), value)
    return mixed.reshape(streams, 1, num_heads, width), None


@torch.inference_mode()
def write_conversations(  # one loop over positions: what is given or sampled, the forward, and what is noted of it
    target: Any, tokenizer: Any, template: Template, plan: WritingPlan, number: int, *, say: Say = print
) -> Shard:
    """Shard `number` of a plan; the same plan and number give the same conversations.

    target: a Llama-type module of transformers. Raises ValueError for a vocabulary of more than 65,536 tokens.
    """
    device, shard = target.device, empty_shard(plan, target.config.vocab_size)
    streams = [
        Conversations(tokenizer, template, plan, rng)
        for rng in np.random.default_rng([plan.seed, number]).spawn(plan.num_streams)
    ]
    generator = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + number)
    cache = Cache(layers=[_Slots(plan.length) for _ in range(target.config.num_hidden_layers)])
    logits, started = None, time.monotonic()
    for position in range(plan.length):
        sampled = _sample(logits, streams, generator) if logits is not None else [0] * plan.num_streams
        for row, (stream, own) in enumerate(zip(streams, sampled, strict=True)):
            shard.starts[row, position], shard.temperatures[row, position] = stream.start, stream.temperature
            token = stream.given()
            shard.roles[row, position] = Role.GIVEN if token is not None else stream.role
            if token is None:
                token = own
                stream.note(token, position)
            shard.tokens[row, position] = token
        starts = torch.from_numpy(shard.starts[:, position].astype(np.int64)).to(device)
        tokens = torch.from_numpy(shard.tokens[:, position].astype(np.int64)).to(device)
        logits = _forward(target, tokens, starts, position, cache)
        num_top = shard.top_tokens.shape[-1]
        shard.top_tokens[:, position], shard.top_log_probs[:, position] = top_laws(logits, num_top)
    rate = plan.num_streams * plan.length / max(1e-9, time.monotonic() - started)
    say(f"shard {number}: {plan.num_streams} streams of {plan.length} tokens, {rate:.0f} tokens/s")
    return shard


def write_corpus(
    target: Any,
    tokenizer: Any,
    template: Template,
    plan: WritingPlan,
    folder: Path,
    *,
    minutes: float,
    say: Say = print,
) -> None:
    """Add shards to a folder for so many minutes, at least one; a shard that is there is not written again.

    A shard is begun only while one like the last fits the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, number, longest_s = time.monotonic(), 0, 0.0
    while number == 0 or longest_s == 0.0 or time.monotonic() - started + longest_s < 60 * minutes:
        path = folder / f"shard-{plan.seed}-{number:04d}.npz"
        if not path.is_file():
            begun = time.monotonic()
            write_shard(write_conversations(target, tokenizer, template, plan, number, say=say), path)
            longest_s = max(longest_s, time.monotonic() - begun)
        number += 1


def _forward(target: Any, tokens: Tensor, starts: Tensor, position: int, cache: Cache) -> Tensor:
    """One token of every stream, (streams,), at one position of the streams: the next token's logits, (streams, vocab)."""
    AttentionInterface.register(_GROUPED, grouped_attention)
    before = target.config._attn_implementation
    target.set_attn_implementation(_GROUPED)
    try:
        output = target(
            input_ids=tokens[:, None],
            position_ids=(position - starts)[:, None],
            attention_mask=_mask(starts, position + 1, target.dtype),
            use_cache=True,
            **{cache_argument(target): cache},
        )
    finally:
        target.set_attn_implementation(before)
    logits: Tensor = output.logits[:, -1].float()
    return logits


def _sample(logits: Tensor, streams: list[Conversations], generator: torch.Generator) -> list[int]:
    """One token a stream, at its own temperature: argmax of logits + temperature * Gumbel noise."""
    temperatures = torch.tensor([stream.temperature for stream in streams], device=logits.device)
    is_prompt = torch.tensor([stream.role is Role.PROMPT for stream in streams], device=logits.device)
    is_far = logits < logits.amax(-1, keepdim=True) - _PROMPT_REACH
    kept = logits.masked_fill(is_far & is_prompt[:, None], float("-inf"))
    noise = torch.empty_like(logits).exponential_(generator=generator).clamp_(min=1e-20).log_().neg_()
    chosen: list[int] = (kept + temperatures[:, None] * noise).argmax(-1).tolist()
    return chosen


def _mask(starts: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """(streams, 1, 1, num_tokens): 0 from a stream's own conversation on, else -inf."""
    is_before = torch.arange(num_tokens, device=starts.device) < starts[:, None]
    mask = torch.zeros(is_before.shape, device=starts.device, dtype=dtype)
    return mask.masked_fill_(is_before, float("-inf"))[:, None, None]

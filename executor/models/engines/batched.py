"""Steps of several requests at once, each with a cache of its own: what a server runs, and what decoding here never does.

The engines decode one request. To know what a batch takes, `batch_of(engine, prompts)` lays the caches of equally long prompts
behind one another on the same weights and kernels: every product runs over the rows of all requests, and each request's rows
attend to its own cache alone. A step's tokens are forgotten afterwards, so that it can be timed again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from executor.models.engines.base import Engine
from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.static import StaticEngine, Workspace
from executor.resident.engine import ResidentEngine
from executor.resident.graphs import Graphs
from executor.resident.operations import Rotation

Tokens = Sequence[Sequence[int]]


class Batch(Protocol):
    """Requests whose caches hold their prompts."""

    def step(self, tokens: Tokens) -> Tensor:
        """(batch, width) more tokens of all requests -> (batch, width, vocab) float32, row i after tokens[:, : i + 1].

        The caches hold the prompts alone afterwards.
        """
        ...


def batch_of(engine: Engine, prompts: Tokens, *, max_width: int) -> Batch:
    """The requests with these prompts, which are equally long, on the engine's model; steps have up to max_width tokens.

    The engine forgets its own request. Raises ValueError for prompts of several lengths or more tokens than the engine's
    capacity, and for an engine without a model.
    """
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1 or not min(lengths) or max_width < 1:
        raise ValueError(
            f"a batch needs prompts of one length and steps of at least 1 token, but got {sorted(lengths)}."
        )
    (length,) = lengths
    if length + max_width > engine.capacity:
        raise ValueError(
            f"a batch of {length} cached and {max_width} new tokens a request exceeds the capacity of {engine.capacity}; "
            "use a larger one."
        )
    for kind, make in _KINDS:
        if isinstance(engine, kind):
            batch: Batch = make(engine, prompts, max_width)
            return batch
    raise ValueError(f"{type(engine).__name__} runs no model, so that no batch of it can be timed.")


def _fill(engine: Engine, prompts: Tokens, copy: Callable[[int], None]) -> None:
    """Read each prompt on the engine's line; copy(request) takes the line's cache. Neighbours that are equal are read once."""
    before: Sequence[int] | None = None
    for request, prompt in enumerate(prompts):
        if prompt != before:
            engine.reset()
            engine.extend(prompt, last_only=True)
        copy(request)
        before = prompt
    engine.reset()


class _StaticBatch:
    """Of the static engine: its weights and products, and attention as one product for all requests and heads."""

    @torch.inference_mode()
    def __init__(self, engine: StaticEngine, prompts: Tokens, max_width: int) -> None:
        self._engine, self._length = engine, len(prompts[0])
        shape = (engine.num_layers, 2, len(prompts), engine.num_kv_heads, self._length + max_width, engine.head_dim)
        self._cache = torch.zeros(shape, device=engine.device, dtype=engine.dtype)
        self._spaces: dict[int, Workspace] = {}

        def copy(request: int) -> None:
            line = engine.line_cache()  # (layers, length, 2, kv_heads, head_dim)
            self._cache[:, :, request, :, : self._length] = line.permute(0, 2, 3, 1, 4)

        _fill(engine, prompts, copy)

    @torch.inference_mode()
    def step(self, tokens: Tokens) -> Tensor:
        engine, weights, first = self._engine, self._engine.weights, self._length
        ids = torch.tensor(tokens, device=engine.device)
        batch, width = ids.shape
        last = first + width
        if (space := self._spaces.get(batch * width)) is None:
            space = self._spaces[batch * width] = Workspace(engine, batch * width)
        rotary = weights.rotary[first:last].repeat(batch, 1, 1)
        mask = _causal(width, last, engine) if width > 1 else None
        hidden = weights.embedding.index_select(0, ids.flatten())
        for index, block in enumerate(weights.blocks):
            block.query_key_value.into(space.query_key_value, engine.normed(hidden, block.attention_norm))
            engine.rotate(space, block, rotary)
            new = space.key_value.view(batch, width, 2, engine.num_kv_heads, engine.head_dim)
            self._cache[index, :, :, :, first:last] = new.permute(2, 0, 3, 1, 4)
            keys, values = self._cache[index, 0, :, :, :last], self._cache[index, 1, :, :, :last]
            hidden = block.attention_out.added_to(hidden, self._attended(space, keys, values, mask))
            block.gate_up.into(space.gate_up, engine.normed(hidden, block.mlp_norm))
            hidden = block.down.added_to(hidden, functional.silu(space.gate).mul_(space.up))
        return engine.logits(hidden).view(batch, width, -1)

    def _attended(self, space: Workspace, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(batch * width, heads * head_dim); keys, values: (batch, kv_heads, slots, head_dim)."""
        engine, batch = self._engine, len(keys)
        num_kv_heads, num_rows, num_groups, head_dim = space.queries.shape
        width = num_rows // batch
        queries = space.queries.view(num_kv_heads, batch, width, num_groups, head_dim).transpose(0, 1)
        if not engine.is_explicit:
            by_head = queries.permute(0, 1, 3, 2, 4).reshape(batch, -1, width, head_dim)
            mixed = functional.scaled_dot_product_attention(
                by_head, keys, values, attn_mask=mask, enable_gqa=num_groups > 1
            )
            return mixed.transpose(1, 2).reshape(num_rows, -1)
        by_head = queries.reshape(batch * num_kv_heads, width * num_groups, head_dim)
        bias = engine.no_mask if mask is None else mask.repeat_interleave(num_groups, dim=0)
        flat = keys.flatten(0, 1).transpose(1, 2)
        scores = torch.baddbmm(bias, by_head, flat, beta=0 if mask is None else 1, alpha=head_dim**-0.5)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1))
        return mixed.view(batch, num_kv_heads, width, num_groups, head_dim).transpose(1, 2).reshape(num_rows, -1)


class _HuggingFaceBatch:
    """Of the Hugging Face engine: its module's own batches and masks."""

    @torch.inference_mode()
    def __init__(self, engine: HuggingFaceEngine, prompts: Tokens, max_width: int) -> None:
        engine.reset()
        self._engine, self._cache, self._length = engine, DynamicCache(), 0
        self._forward(prompts)
        self._length = len(prompts[0])

    @torch.inference_mode()
    def step(self, tokens: Tokens) -> Tensor:
        logits = self._forward(tokens)
        self._cache.crop(-len(tokens[0]))  # transformers from 5.18 on refuses positive lengths
        return logits

    def _forward(self, tokens: Tokens) -> Tensor:
        engine = self._engine
        ids = torch.tensor(tokens, device=engine.device)
        positions = torch.arange(self._length, self._length + ids.shape[1], device=engine.device)
        output: Any = engine.module(
            input_ids=ids,
            position_ids=positions.expand(len(ids), -1),
            use_cache=True,
            **{engine.cache_argument: self._cache},
        )
        logits: Tensor = output.logits[..., : engine.vocab_size]
        return logits.float()


class _ResidentBatch:
    """Of the resident engine: its kernels for products, torch's own attention, a graph for each width on CUDA."""

    @torch.inference_mode()
    def __init__(self, engine: ResidentEngine, prompts: Tokens, max_width: int) -> None:
        self._engine, self._length, self._slots = engine, len(prompts[0]), len(prompts[0]) + max_width
        shape = engine.weights.shape
        cache = (shape.num_layers, len(prompts) * self._slots, shape.num_kv_heads, shape.head_dim)
        self._keys, self._values = (torch.zeros(cache, device=engine.device, dtype=engine.dtype) for _ in range(2))
        is_cuda = engine.device.type == "cuda"
        stream = torch.cuda.Stream(engine.device) if is_cuda else None  # type: ignore[no-untyped-call]  # torch has no types here
        self._graphs = Graphs(engine.device, stream)
        self._ids: dict[tuple[int, int], Tensor] = {}

        def copy(request: int) -> None:
            first = request * self._slots
            for own, line in zip((self._keys, self._values), engine.line_cache(), strict=True):
                own[:, first : first + self._length] = line

        _fill(engine, prompts, copy)

    @torch.inference_mode()
    def step(self, tokens: Tokens) -> Tensor:
        new = torch.tensor(tokens, device=self._engine.device)
        key = (new.shape[0], new.shape[1])
        ids = self._ids.setdefault(key, torch.empty_like(new))
        ids.copy_(new)
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize()  # the graph has a stream of its own
        (logits,) = self._graphs.run(key, lambda: (self._step_body(ids),))
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize()
        return logits

    def _step_body(self, ids: Tensor) -> Tensor:
        """Device tensors only, so that it can be captured."""
        engine, weights, shape = self._engine, self._engine.weights, self._engine.weights.shape
        batch, width = ids.shape
        last = self._length + width
        operations = engine.operations_for(batch * width)
        positions = torch.arange(self._length, last, device=engine.device).repeat(batch)
        starts = self._slots * torch.arange(batch, device=engine.device)
        slots = positions + starts.repeat_interleave(width)
        rotation = Rotation(positions, weights.cosines, weights.sines)
        mask = _causal(width, last, engine) if width > 1 else None
        hidden = weights.embedding.index_select(0, ids.flatten())
        for index, block in enumerate(weights.blocks):
            states = operations.linear(
                hidden, block.query_key_value, bias=block.query_key_value_bias, norm=block.attention_norm
            )
            keys, values = self._keys[index], self._values[index]
            queries = operations.rotate_and_store(states, rotation, slots, keys, values, block.head_norm)
            by_head = queries.view(batch, width, -1, shape.head_dim).transpose(1, 2)
            own_keys, own_values = (
                cache.view(-1, self._slots, shape.num_kv_heads, shape.head_dim)[:batch, :last].transpose(1, 2)
                for cache in (keys, values)
            )
            mixed = functional.scaled_dot_product_attention(
                by_head, own_keys, own_values, attn_mask=mask, enable_gqa=shape.num_heads > shape.num_kv_heads
            )
            mixed = mixed.transpose(1, 2).reshape(batch * width, -1)
            hidden = operations.linear(mixed, block.attention_out, residual=hidden)
            gated = operations.linear(hidden, block.gate_up, norm=block.mlp_norm, gates=True)
            hidden = operations.linear(gated, block.down, residual=hidden)
        return engine.logits(hidden).view(batch, width, -1)


def _causal(width: int, num_slots: int, engine: StaticEngine | ResidentEngine) -> Tensor:
    """(width, num_slots) to add to scores: each new token sees all before it."""
    rows = torch.arange(num_slots - width, num_slots, device=engine.device)[:, None]
    is_hidden = torch.arange(num_slots, device=engine.device) > rows
    mask = torch.zeros(width, num_slots, device=engine.device, dtype=engine.dtype)
    return mask.masked_fill_(is_hidden, float("-inf"))


_KINDS: tuple[tuple[type, Any], ...] = (
    (StaticEngine, _StaticBatch),
    (HuggingFaceEngine, _HuggingFaceBatch),
    (ResidentEngine, _ResidentBatch),
)

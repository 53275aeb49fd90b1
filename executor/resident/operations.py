"""What one block of a resident model computes, step by step: the specification in plain torch, on any device.

Every operation reads and writes device tensors only, so that a sequence of them can be captured as a graph.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Norm(NamedTuple):
    """Weights of the norms on each query's and key's head, (head_dim,) (Qwen3)."""

    query: Tensor
    key: Tensor


class Rotation(NamedTuple):
    """Rotary embedding: the position of each row, (rows,), and tables (positions, head_dim / 2) float32."""

    positions: Tensor
    cosines: Tensor
    sines: Tensor


class View(NamedTuple):
    """Which slots each row of a chunk attends to.

    The cache begins with `num_tail_slots` slots for branch tails; the line follows. Row r sees the line's first
    limits[r] tokens, (rows,) int32, and of the first tail_width * num_tail_steps tail slots those with index = r
    modulo tail_width: its own tail.
    """

    limits: Tensor
    num_tail_slots: int
    tail_width: int = 0
    num_tail_steps: int = 0


class Operations(Protocol):
    """The three operations of a decoder block, on (rows, ...) tensors of one dtype."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        residual: Tensor | None = None,
        gates: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """(rows, inputs) -> (rows, outputs): RMS norm of x first if `norm` (inputs,), the product with weight^T (+ bias),
        then, if it `gates`, silu(first half) * second half, then `residual` (rows, outputs) is added."""
        ...

    def rotate_and_store(
        self, states: Tensor, rotation: Rotation, slots: Tensor, keys: Tensor, values: Tensor, norm: Norm | None
    ) -> Tensor:
        """Normalise (if norm) and turn queries and keys; write keys and values to their slots.

        states: (rows, (heads + 2 kv_heads) * head_dim): queries, keys, values. keys, values: (slots, kv_heads, head_dim).
        Returns the queries, (rows, heads, head_dim).
        """
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, view: View) -> Tensor:
        """Attention of every row over its view, (rows, heads, head_dim) -> (rows, heads * head_dim)."""
        ...


class TorchOperations:
    """The operations in plain torch: for CPUs, for prompts, and to hold the kernels to. eps: of every RMS norm."""

    def __init__(self, *, eps: float) -> None:
        self._eps = eps

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        residual: Tensor | None = None,
        gates: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """See `Operations.linear`."""
        if norm is not None:
            x = functional.rms_norm(x, (x.shape[-1],), norm, self._eps)
        y = functional.linear(x, weight, bias)
        if gates:
            gate, up = y.chunk(2, dim=-1)
            y = functional.silu(gate) * up
        if residual is not None:
            y = y + residual
        return y if out_dtype is None else y.to(out_dtype)

    def rotate_and_store(
        self, states: Tensor, rotation: Rotation, slots: Tensor, keys: Tensor, values: Tensor, norm: Norm | None
    ) -> Tensor:
        """See `Operations.rotate_and_store`."""
        num_kv_heads, head_dim = keys.shape[1:]
        heads = states.view(len(states), -1, head_dim)
        first_key, first_value = heads.shape[1] - 2 * num_kv_heads, heads.shape[1] - num_kv_heads
        query, key, value = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        if norm is not None:
            query = functional.rms_norm(query, (head_dim,), norm.query, self._eps)
            key = functional.rms_norm(key, (head_dim,), norm.key, self._eps)
        cosines = rotation.cosines.index_select(0, rotation.positions)[:, None]
        sines = rotation.sines.index_select(0, rotation.positions)[:, None]
        keys.index_copy_(0, slots, _turned(key, cosines, sines))
        values.index_copy_(0, slots, value)
        return _turned(query, cosines, sines)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, view: View) -> Tensor:
        """See `Operations.attend`."""
        num_rows, num_heads, head_dim = queries.shape
        num_slots, num_kv_heads = keys.shape[:2]
        slots = torch.arange(num_slots, device=queries.device)
        is_seen = slots - view.num_tail_slots < view.limits[:, None]  # (rows, slots)
        is_seen &= slots >= view.num_tail_slots
        if view.num_tail_steps:
            row = torch.arange(num_rows, device=queries.device)[:, None]
            is_seen |= (slots < view.tail_width * view.num_tail_steps) & (slots % view.tail_width == row)
        by_head = (
            queries.view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3).reshape(1, num_heads, num_rows, -1)
        )
        mixed = functional.scaled_dot_product_attention(
            by_head,
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=is_seen,
            enable_gqa=num_heads > num_kv_heads,
        )
        return mixed[0].transpose(0, 1).reshape(num_rows, -1)


def _turned(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of (rows, heads, head_dim), in float32."""
    left, right = states.float().chunk(2, dim=-1)
    turned = torch.cat([left * cosines - right * sines, right * cosines + left * sines], dim=-1)
    return turned.to(states.dtype)

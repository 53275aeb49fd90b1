"""The operations of a block as Triton kernels: how products are cut, which cut serves, and the launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from executor.resident import kernels
from executor.resident.operations import Norm, Rotation, View

_MAX_ROWS = 64  # of one chunk: more rows than this are a prompt's, for the library's products
_MAX_QUERIES = {
    2: 256,
    4: 64,
}  # rows times the query heads of a key head, by bytes of a number: what a program can hold
_BLOCK_SLOTS = {2: 64, 4: 16}
_NUM_SPLITS = 8  # programs that share one head's context
_NUM_TRIALS = 12


class Blocks(NamedTuple):
    """How a product is cut: block of outputs and of inputs, warps of a program, stages of its pipeline."""

    num_outputs: int
    num_inputs: int
    num_warps: int
    num_stages: int


# What is tried when a product of some shape is met first; the fastest serves from then on.
VECTOR_BLOCKS = (
    Blocks(8, 512, 4, 1),
    Blocks(8, 1024, 4, 1),
    Blocks(4, 1024, 4, 1),
    Blocks(4, 512, 4, 1),
    Blocks(16, 256, 4, 1),
)
MATRIX_BLOCKS = (
    Blocks(32, 128, 2, 5),
    Blocks(32, 256, 4, 4),
    Blocks(64, 128, 4, 4),
    Blocks(16, 256, 2, 5),
    Blocks(16, 256, 4, 4),
)


def max_rows(dtype: torch.dtype, num_groups: int) -> int:
    """Rows of a chunk that the kernels can serve. num_groups: query heads of a key head."""
    return min(_MAX_ROWS, _MAX_QUERIES[dtype.itemsize] // num_groups)


def padded_rows(num_rows: int) -> int:
    """Rows of a product's block: one alone, else a power of two that the matrix units take."""
    return 1 if num_rows == 1 else max(16, int(triton.next_power_of_2(num_rows)))


def product_settings(blocks: Blocks, rows: int, num_inputs: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a product of `rows` (`padded_rows`) rows is compiled with, besides its flags; it fits the shared memory."""
    block_k = min(blocks.num_inputs, max(32, int(triton.next_power_of_2(num_inputs))))
    num_stages = blocks.num_stages
    if dtype.itemsize > 2:
        block_k, num_stages = min(block_k, 64), min(2, num_stages)
    elif rows > 16:
        block_k = min(block_k, 128)
    return {
        "BLOCK_N": blocks.num_outputs,
        "BLOCK_K": block_k,
        "IS_EVEN": num_inputs % block_k == 0,
        "num_warps": blocks.num_warps,
        "num_stages": num_stages,
        **({} if rows == 1 else {"ROWS": rows, "PRECISION": _precision(dtype)}),
    }


def attention_settings(num_queries: int, dtype: torch.dtype) -> dict[str, Any]:
    """What attention is compiled with, besides its shapes. num_queries: rows times the query heads of a key head."""
    return {
        "BLOCK_M": max(16, int(triton.next_power_of_2(num_queries))),
        "BLOCK_S": _BLOCK_SLOTS[dtype.itemsize],
        "SPLITS": _NUM_SPLITS,
        "PRECISION": _precision(dtype),
        "num_warps": 4,
        "num_stages": 2,
    }


def _precision(dtype: torch.dtype) -> str:
    """float32 products are exact to float32: equality of policies is tested in it."""
    return "ieee" if dtype == torch.float32 else "tf32"


class TritonOperations:
    """The operations of a block as Triton kernels, for chunks of at most `max_rows` rows; see `Operations`.

    How a product is best cut depends on its shape and the chip, so the first product of each shape is measured, by
    `_fastest`; until then, and while a graph is captured, the first of the candidates serves.
    """

    def __init__(self, *, eps: float, starts_early: bool) -> None:
        """starts_early: launch each kernel while the one before it ends (programmatic dependent launch, capability 9).

        Its prologue, the first block of weights included, then overlaps the other's tail.
        """
        self._eps = eps
        self._launch = {"STARTS_EARLY": True, "launch_pdl": True} if starts_early else {"STARTS_EARLY": False}
        self._chosen: dict[tuple[object, ...], Blocks] = {}
        self._arrivals: Tensor | None = None  # splits of each head that have ended, zero between launches

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
        num_rows, num_inputs = x.shape
        num_outputs = weight.shape[0] // 2 if gates else weight.shape[0]
        out = torch.empty(num_rows, num_outputs, device=x.device, dtype=out_dtype or x.dtype)
        rows = padded_rows(num_rows)
        key = (rows, num_inputs, num_outputs, gates, norm is None, bias is None, residual is None, out.dtype)
        extras = (x if bias is None else bias, x if norm is None else norm, x if residual is None else residual)
        flags = {
            "HAS_BIAS": bias is not None,
            "HAS_NORM": norm is not None,
            "HAS_RESIDUAL": residual is not None,
            "GATES": gates,
        }

        def run(blocks: Blocks, weight: Tensor = weight) -> None:
            settings = {**flags, **self._launch, **product_settings(blocks, rows, num_inputs, x.dtype)}
            grid = (triton.cdiv(num_outputs, blocks.num_outputs),)
            if rows == 1:
                kernels.vector_linear[grid](
                    x, weight, *extras, out, num_inputs, num_outputs, self._eps, **settings
                )  # fmt: skip
            else:
                kernels.matrix_linear[grid](
                    x, weight, *extras, out, num_rows, num_inputs, num_outputs, self._eps, **settings
                )  # fmt: skip

        chosen = self._chosen.get(key)
        if chosen is None:
            candidates = VECTOR_BLOCKS if rows == 1 else MATRIX_BLOCKS
            # float32 serves to prove equality, not to be fast.
            if x.dtype == torch.float32 or x.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
                chosen = candidates[0]
            else:
                chosen = self._chosen[key] = _fastest(run, candidates, weight)
        run(chosen)
        return out

    def rotate_and_store(
        self, states: Tensor, rotation: Rotation, slots: Tensor, keys: Tensor, values: Tensor, norm: Norm | None
    ) -> Tensor:
        """See `Operations.rotate_and_store`."""
        num_kv_heads, head_dim = keys.shape[1:]
        num_rows, num_heads = len(states), states.shape[1] // head_dim - 2 * num_kv_heads
        queries = torch.empty(num_rows, num_heads, head_dim, device=states.device, dtype=states.dtype)
        kernels.rotate_and_store[(num_rows, num_heads + 2 * num_kv_heads)](
            states, rotation.positions, slots, rotation.cosines, rotation.sines,
            states if norm is None else norm.query, states if norm is None else norm.key,
            queries, keys, values, self._eps,
            NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2, HAS_NORM=norm is not None, num_warps=1,
            **self._launch,
        )  # fmt: skip
        return queries

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, view: View) -> Tensor:
        """See `Operations.attend`."""
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[1]
        groups = num_heads // num_kv_heads
        settings = attention_settings(num_rows * groups, queries.dtype)
        shape = (num_kv_heads, _NUM_SPLITS, settings["BLOCK_M"])
        mixed = torch.empty(*shape, head_dim, device=queries.device, dtype=torch.float32)
        peak, mass = torch.empty(2, *shape, device=queries.device, dtype=torch.float32)
        out = torch.empty(num_rows, num_heads * head_dim, device=queries.device, dtype=queries.dtype)
        if self._arrivals is None:
            self._arrivals = torch.zeros(num_kv_heads, device=queries.device, dtype=torch.int32)
        kernels.attend[(num_kv_heads, _NUM_SPLITS)](
            queries, keys, values, view.limits, mixed, peak, mass, self._arrivals, out, num_rows,
            head_dim**-0.5, view.num_tail_slots, view.tail_width * view.num_tail_steps, max(1, view.tail_width),
            GROUPS=groups, NUM_KV_HEADS=num_kv_heads, DIM=head_dim, **settings, **self._launch,
        )  # fmt: skip
        return out


def _fastest(run: Callable[[Blocks, Tensor], None], candidates: Sequence[Blocks], weight: Tensor) -> Blocks:
    """The candidate of the least time, each measured as a graph of several runs; waits for the device.

    The runs take turns with copies of the weights that fill the cache, for a step meets its weights out of it.
    """
    cache_bytes = 2 * torch.cuda.get_device_properties(weight.device).L2_cache_size
    num_copies = min(_NUM_TRIALS, 1 + cache_bytes // (weight.numel() * weight.element_size()))
    weights = [weight] + [weight.clone() for _ in range(num_copies - 1)]
    times = []
    for blocks in candidates:
        run(blocks, weight)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for trial in range(_NUM_TRIALS):
                run(blocks, weights[trial % num_copies])
        spans = []
        for _ in range(4):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            spans.append(start.elapsed_time(end))
        times.append(min(spans))
    return candidates[times.index(min(times))]

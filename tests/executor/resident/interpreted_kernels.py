"""The Triton kernels in Triton's interpreter against plain torch, in float32 and without a GPU.

A program of its own, because Triton reads TRITON_INTERPRET=1, which it is started with, when it is imported. Its exit code is
0 where all agree, and CANNOT_RUN, with a reason, where the interpreter itself fails (it does beside some releases of NumPy).
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from executor.resident.operations import Norm, Rotation, TorchOperations, View
from executor.resident.triton_operations import TritonOperations

CANNOT_RUN = 77
TOLERANCE = 2e-4


@triton.jit
def _add_up(source, to, num_times, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    lane = tl.arange(0, SIZE)
    block = tl.zeros((SIZE,), tl.float32)
    for _ in range(num_times):  # the end of a loop is what it may fail at
        block += tl.load(source + lane)
    tl.store(to + lane, block)


def check(name: str, theirs: Tensor, ours: Tensor) -> None:
    error = (theirs.float() - ours.float()).abs().max().item()
    assert error < TOLERANCE, f"{name}: off by {error}"  # NaN is caught, too


def check_products(kernels: TritonOperations, plain: TorchOperations) -> None:
    for num_rows in (1, 5):
        for num_outputs, num_inputs in ((40, 300), (64, 512)):  # one that fills no block, and one that does
            x, weight = torch.randn(num_rows, num_inputs), torch.randn(2 * num_outputs, num_inputs) / num_inputs**0.5
            norm, bias = torch.randn(num_inputs), torch.randn(2 * num_outputs)
            extras = {"norm": norm, "bias": bias, "residual": torch.randn(num_rows, 2 * num_outputs)}
            for options in ({}, extras, {"norm": norm, "gates": True}, {"gates": True}):
                name = f"product of {num_rows} rows, {num_outputs} x {num_inputs}, {', '.join(options)}"
                check(name, kernels.linear(x, weight, **options), plain.linear(x, weight, **options))  # type: ignore[arg-type]


def check_attention(kernels: TritonOperations, plain: TorchOperations) -> None:
    num_heads, num_kv_heads, head_dim, num_slots = 6, 2, 32, 300
    for num_rows in (1, 5):
        queries = torch.randn(num_rows, num_heads, head_dim)
        keys, values = torch.randn(2, num_slots, num_kv_heads, head_dim)
        limits = torch.arange(num_rows, dtype=torch.int32) * 20 + 101
        for view in (View(limits, 64), View(limits, 64, num_rows, 3)):
            for turn in range(2):  # the second finds the counters as the first left them
                name = f"attention of {num_rows} rows, {view.num_tail_steps} tail steps, launch {turn}"
                check(name, kernels.attend(queries, keys, values, view), plain.attend(queries, keys, values, view))


def check_rotation(kernels: TritonOperations, plain: TorchOperations) -> None:
    num_rows, num_heads, num_kv_heads, head_dim, num_slots = 3, 4, 2, 32, 20
    states = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim)
    cosines, sines = torch.randn(2, 50, head_dim // 2)
    rotation = Rotation(torch.tensor([7, 8, 31]), cosines, sines)
    slots = torch.tensor([4, 0, 19])
    for norm in (None, Norm(torch.randn(head_dim), torch.randn(head_dim))):
        written = []
        for operations in (kernels, plain):
            keys, values = torch.zeros(2, num_slots, num_kv_heads, head_dim)
            written.append((operations.rotate_and_store(states, rotation, slots, keys, values, norm), keys, values))
        for name, theirs, ours in zip(("queries", "keys", "values"), *written, strict=True):
            check(f"rotation, {name}", theirs, ours.reshape(theirs.shape))


def main() -> int:
    torch.manual_seed(0)
    try:
        total = torch.zeros(16)
        _add_up[(1,)](torch.ones(16), total, 2, SIZE=16)
        assert total.eq(2).all()
    except Exception as error:
        print(f"Triton {triton.__version__} cannot interpret a trivial kernel: {error}")
        return CANNOT_RUN
    kernels, plain = TritonOperations(eps=1e-6, starts_early=False), TorchOperations(eps=1e-6)
    check_products(kernels, plain)
    check_attention(kernels, plain)
    check_rotation(kernels, plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())

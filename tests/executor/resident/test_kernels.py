"""The Triton kernels without a GPU: they compile for one and fit it, and compute what plain torch does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

SHARED_BYTES = 232_448  # what one program may have of a multiprocessor of compute capability 9.0
ELEMENTS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
NUM_INPUTS = 4096


def compiled_shared_bytes(
    kernel: Any, pointers: Mapping[str, str], settings: Mapping[str, Any], *, multiples: tuple[str, ...] = ()
) -> int:
    """Compile a kernel for sm_90 and give its shared memory. pointers: name -> type; the others are integers.

    multiples: integers that are multiples of 16, as pointers are: loads are then vectors and may be pipelined.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: value for name, value in settings.items() if name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in settings.items() if name not in options}
    types = dict.fromkeys(constants, "constexpr") | {"eps": "fp32", "scale": "fp32"} | dict(pointers)
    names = kernel.arg_names
    aligned = {(names.index(name),): [("tt.divisibility", 16)] for name in (*pointers, *multiples)}
    source = ASTSource(
        fn=kernel, signature={name: types.get(name, "i32") for name in names}, constexprs=constants, attrs=aligned
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={**options, "launch_pdl": True})
    return int(compiled.metadata.shared)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


# The flags that hold most: two products of one x, and its norm; and what a product ends with.
GATED = {"HAS_BIAS": False, "HAS_NORM": True, "HAS_RESIDUAL": False, "GATES": True, "STARTS_EARLY": True}
CLOSING = {"HAS_BIAS": True, "HAS_NORM": False, "HAS_RESIDUAL": True, "GATES": False, "STARTS_EARLY": False}


@pytest.mark.parametrize("dtype", list(ELEMENTS))
@pytest.mark.parametrize("num_rows", [1, 2, 64])
def test_every_cut_of_a_product_fits_the_shared_memory(num_rows: int, dtype: torch.dtype) -> None:
    from executor.resident import kernels
    from executor.resident import triton_operations as operations

    rows = operations.padded_rows(num_rows)
    kernel = kernels.vector_linear if rows == 1 else kernels.matrix_linear
    candidates = operations.VECTOR_BLOCKS if rows == 1 else operations.MATRIX_BLOCKS
    pointers = dict.fromkeys(("x", "weight", "bias", "norm", "residual", "out"), ELEMENTS[dtype])
    for blocks in candidates if dtype == torch.bfloat16 else candidates[:1]:  # float32 serves with the first
        settings = operations.product_settings(blocks, rows, NUM_INPUTS, dtype)
        for flags in (GATED, CLOSING) if rows == 1 and blocks == candidates[0] else (GATED,):
            shared = compiled_shared_bytes(
                kernel, pointers, {**settings, **flags}, multiples=("num_inputs", "num_outputs")
            )
            assert shared <= SHARED_BYTES, f"{blocks} with {rows} rows of {dtype} takes {shared} bytes"


@pytest.mark.parametrize("dtype", list(ELEMENTS))
@pytest.mark.parametrize(("head_dim", "num_groups"), [(64, 7), (128, 4)])
def test_attention_of_the_widest_chunk_fits_the_shared_memory(
    head_dim: int, num_groups: int, dtype: torch.dtype
) -> None:
    from executor.resident import kernels
    from executor.resident import triton_operations as operations

    num_rows = operations.max_rows(dtype, num_groups)
    settings = operations.attention_settings(num_rows * num_groups, dtype)
    shapes = {"GROUPS": num_groups, "NUM_KV_HEADS": 2, "DIM": head_dim, "STARTS_EARLY": True}
    pointers = {
        **dict.fromkeys(("queries", "keys", "values", "out"), ELEMENTS[dtype]),
        **dict.fromkeys(("mixed_out", "peak_out", "mass_out"), "*fp32"),
        **dict.fromkeys(("limits", "arrivals"), "*i32"),
    }
    shared = compiled_shared_bytes(kernels.attend, pointers, {**settings, **shapes})
    assert shared <= SHARED_BYTES, f"{num_rows} rows of {dtype} take {shared} bytes"


def test_the_rotation_compiles() -> None:
    from executor.resident import kernels

    settings = {"NUM_HEADS": 14, "NUM_KV_HEADS": 2, "HALF": 32, "HAS_NORM": True, "STARTS_EARLY": True, "num_warps": 1}
    numbers = ("states", "query_norm", "key_norm", "queries", "keys", "values")
    pointers = {
        **dict.fromkeys(numbers, "*bf16"),
        **dict.fromkeys(("cosines", "sines"), "*fp32"),
        **dict.fromkeys(("positions", "slots"), "*i64"),
    }
    assert compiled_shared_bytes(kernels.rotate_and_store, pointers, settings) <= SHARED_BYTES


def test_they_compute_what_torch_does() -> None:
    program = Path(__file__).with_name("interpreted_kernels.py")
    root = str(program.parents[3])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    ended = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    if ended.returncode == 77:  # its CANNOT_RUN: it is not imported here, where Triton compiles
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stderr

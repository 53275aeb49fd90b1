"""What every source of a model answers, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from executor.models.engines.base import Engine
from executor.models.settings import DTYPES, EngineSettings

LARGEST_DEFAULT_CAPACITY = 8192  # positions: a cache for all of a long-context model would fill the memory unasked


class ModelError(ValueError):
    """A model cannot be loaded as asked. One line: what, where, what to do."""


class Source(Protocol):
    """One model, not loaded yet."""

    def head_size(self) -> int:
        """Tokens that its head gives logits of."""
        ...

    def num_layers(self) -> int:
        """Blocks between embedding and head."""
        ...

    def tokenizer(self) -> Any:
        """A transformers tokenizer, or what answers like one."""
        ...

    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text; may be none."""
        ...

    def fingerprint(self) -> str:
        """sha256: equal for equal models, wherever they lie."""
        ...

    def engine(self, settings: EngineSettings) -> Engine:
        """The weights behind the engine interface."""
        ...


@contextmanager
def fitting(name: object, capacity: int, device: torch.device) -> Iterator[None]:
    """Say it in one line when the device's memory is too small."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # a CPU's allocator says it in this class
            raise
        raise ModelError(
            f"{name} with a cache of {capacity} positions does not fit the memory of {device}: lower the capacity, or "
            "choose a smaller dtype or model."
        ) from error


def resolve_device(device: torch.device | str) -> torch.device:
    """A device that exists; of CUDA with its number, so that equal devices compare equal."""
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}: write cpu, cuda, or cuda:1 for the second GPU.") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ModelError(f"device {device} was asked for, but torch {torch.__version__} sees no CUDA device: use cpu.")
    index, num = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    if index >= num:
        raise ModelError(
            f"device {device} was asked for, but there are {num} CUDA devices: the last is cuda:{num - 1}."
        )
    return torch.device("cuda", index)


def resolve_dtype(dtype: str) -> torch.dtype:
    """A dtype that models can have, by its name."""
    assert dtype in DTYPES, f"settings hold no dtype {dtype!r}"
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved

"""What every source of a model answers, and what may be asked of it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from executor.models.engines.base import Engine

LARGEST_DEFAULT_CAPACITY = 8192  # positions: a cache for all of a long-context model would fill the memory unasked
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model cannot be loaded as asked. One line: what, where, what to do."""


class EngineKind(enum.StrEnum):
    """How a model is run."""

    STATIC = "static"  # fast, Llama-type models
    HUGGING_FACE = "hugging_face"  # any causal language model
    RESIDENT = "resident"  # Llama-type models on a GPU: draft and target in one process, steps as graphs


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine is to run. capacity: positions in its cache; None for the source's default. vocab_size: tokens that
    its head is cut to; None for all. num_feature_layers: last blocks whose hidden states it keeps.
    """

    kind: EngineKind = EngineKind.STATIC
    device: torch.device
    dtype: torch.dtype
    capacity: int | None = None
    vocab_size: int | None = None
    num_feature_layers: int = 0

    @classmethod
    def parse(
        cls, *, engine: EngineKind | str, device: torch.device | str, dtype: torch.dtype | str, **rest: Any
    ) -> Self:
        """From names as on the command line; each is checked."""
        try:
            kind = EngineKind(engine)
        except ValueError as error:
            raise ModelError(f"unknown engine {engine!r}: choose {' or '.join(EngineKind)}.") from error
        return cls(kind=kind, device=resolve_device(device), dtype=_dtype(dtype), **rest)


class Source(Protocol):
    """One model, not loaded yet."""

    def head_size(self) -> int:
        """Tokens that its head gives logits of."""
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
    except torch.OutOfMemoryError as error:
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


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]

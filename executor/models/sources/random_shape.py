"""Random weights of a named shape, made on the device: for time and memory, never for text."""

from __future__ import annotations

import hashlib
from typing import Any

from executor.models.engines.base import Engine
from executor.models.names import RandomShape
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import LARGEST_DEFAULT_CAPACITY, ModelError, fitting, resolve_device, resolve_dtype
from executor.resident.engine import PAD, ResidentEngine
from executor.resident.weights import random_weights
from sim.decoding.model_shapes import ModelShape


class RandomSource:
    """A shape such as random:llama-3.1-8b; name: as the user wrote it."""

    def __init__(self, name: str, random: RandomShape) -> None:
        self._name, self._random = name, random

    def head_size(self) -> int:
        """As in the family's config."""
        return self._shape().vocab_size

    def num_layers(self) -> int:
        """As in the family's config."""
        return self._shape().num_layers

    def tokenizer(self) -> Any:
        """One token a byte."""
        return ByteTokenizer()

    def eos_token_ids(self) -> tuple[int, ...]:
        """Random text has no end."""
        return ()

    def fingerprint(self) -> str:
        """Of its name, which decides the weights."""
        return hashlib.sha256(self._name.encode()).hexdigest()

    def engine(self, settings: EngineSettings) -> Engine:
        """On the resident engine only."""
        if settings.kind is not EngineKind.RESIDENT:
            raise ModelError(
                f"{self._name} has random weights, which only the resident engine makes: choose that engine."
            )
        shape, capacity = self._shape(), settings.capacity or LARGEST_DEFAULT_CAPACITY
        device = resolve_device(settings.device)
        with fitting(self._name, capacity, device):
            weights = random_weights(
                shape,
                num_positions=capacity + PAD,
                vocab_size=settings.vocab_size or shape.vocab_size,
                device=device,
                dtype=resolve_dtype(settings.dtype),
            )
            return ResidentEngine(weights, capacity=capacity, num_feature_layers=settings.num_feature_layers)

    def _shape(self) -> ModelShape:
        try:
            return self._random.shape
        except ValueError as error:
            raise ModelError(str(error)) from None


class ByteTokenizer:
    """A tokenizer for random weights: one token a byte."""

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes, at least one."""
        return list(text.encode()) or [0]

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the tokens that are bytes."""
        del skip_special_tokens
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        """The same for every shape."""
        return {f"<{byte}>": byte for byte in range(256)}

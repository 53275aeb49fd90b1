"""Shapes of language models: the numbers of a config.json that decide time and memory.

Those of Llama-type models follow from their sizes; of others the weights are counted (`executor.models.sources.shapes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Weights of a model as they were counted. held: all of them. step: those that a decoding step reads if it takes every
    expert: not the tables of which it looks up rows. experts: of these, in the num_experts experts of all layers; a token
    takes num_active of them in each layer.
    """

    held: int
    step: int
    experts: int = 0
    num_experts: int = 1
    num_active: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.experts <= self.step <= self.held and 1 <= self.num_active <= self.num_experts):
            raise ValueError(
                f"weights are counted as experts <= step <= held, and 1 <= num_active <= num_experts; got {self}."
            )

    def num_read(self, num_tokens: ArrayLike) -> NDArray[np.float64]:
        """Weights that a forward of so many tokens reads. Tokens are taken to choose their experts evenly and apart from one
        another, so that the share of experts that n tokens take is 1 - (1 - active / experts)^n.
        """
        share = 1.0 - (1.0 - self.num_active / self.num_experts) ** np.asarray(num_tokens, float)
        read: NDArray[np.float64] = self.step - self.experts * (1.0 - share)
        return read


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that decide a model's time and memory, as in its config.json."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_bias: bool = False
    has_head_norm: bool = False
    is_tied: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    num_kv_layers: int | None = None  # layers that keep keys and values; None for all
    counts: WeightCounts | None = None  # of a model that is not of Llama's type

    @property
    def num_step_parameters(self) -> int:
        """Weights that every decoding step reads: all but the embedding, of which it looks up a row, and what biases there
        are."""
        if self.counts is not None:
            return self.counts.step
        queries, key_values = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * key_values)
        mlp, norms = 3 * self.hidden_size * self.intermediate_size, 2 * self.hidden_size
        return self.num_layers * (attention + mlp + norms) + self.hidden_size * (1 + self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """All weights that have to be held, biases aside."""
        if self.counts is not None:
            return self.counts.held
        return self.num_step_parameters + (0 if self.is_tied else self.hidden_size * self.vocab_size)

    @property
    def kv_numbers(self) -> int:
        """Numbers that one token keeps in the cache: keys and values of all layers that keep them."""
        layers = self.num_layers if self.num_kv_layers is None else self.num_kv_layers
        return 2 * layers * self.num_kv_heads * self.head_dim

    def num_read(self, num_tokens: ArrayLike) -> NDArray[np.float64]:
        """Weights that one forward of so many tokens, of all rows together, has to read."""
        if self.counts is not None:
            return self.counts.num_read(num_tokens)
        return np.full(np.shape(num_tokens), float(self.num_step_parameters))

    @property
    def num_active(self) -> float:
        """Weights that every token is multiplied with."""
        return float(self.num_read(1))


# Public config.json of each model family; the weights are random, so only time and memory are the model's own.
SHAPES: Mapping[str, ModelShape] = {
    "llama-68m": ModelShape(
        num_layers=2, hidden_size=768, intermediate_size=3072, num_heads=12, num_kv_heads=12, head_dim=64,
        vocab_size=32000,
    ),
    "qwen2.5-0.5b": ModelShape(
        num_layers=24, hidden_size=896, intermediate_size=4864, num_heads=14, num_kv_heads=2, head_dim=64,
        vocab_size=151936, has_bias=True, is_tied=True, rope_theta=1e6, norm_eps=1e-6,
    ),
    "llama-3.2-1b": ModelShape(
        num_layers=16, hidden_size=2048, intermediate_size=8192, num_heads=32, num_kv_heads=8, head_dim=64,
        vocab_size=128256, is_tied=True, rope_theta=5e5,
    ),
    "llama-3.1-8b": ModelShape(
        num_layers=32, hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8, head_dim=128,
        vocab_size=128256, rope_theta=5e5,
    ),
    "llama-2-13b": ModelShape(
        num_layers=40, hidden_size=5120, intermediate_size=13824, num_heads=40, num_kv_heads=40, head_dim=128,
        vocab_size=32000,
    ),
    "qwen2.5-32b": ModelShape(
        num_layers=64, hidden_size=5120, intermediate_size=27648, num_heads=40, num_kv_heads=8, head_dim=128,
        vocab_size=152064, has_bias=True, rope_theta=1e6, norm_eps=1e-6,
    ),
    "llama-3.1-70b": ModelShape(
        num_layers=80, hidden_size=8192, intermediate_size=28672, num_heads=64, num_kv_heads=8, head_dim=128,
        vocab_size=128256, rope_theta=5e5,
    ),
    "tiny": ModelShape(
        num_layers=2, hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=288,
    ),
}  # fmt: skip


def named_shape(name: str) -> ModelShape:
    """The shape of a model family by its short name."""
    if name not in SHAPES:
        raise ValueError(f"no model shape is called {name!r}; choose one of {', '.join(SHAPES)}.")
    return SHAPES[name]

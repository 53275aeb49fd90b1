"""Tiny models with random weights of every kind that the engines meet, and what an engine must answer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from executor.models.engines.base import Engine
from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.static import StaticEngine

VOCAB = 61
CAPACITY = 96
TOLERANCE = 1e-4

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "llama-one-layer": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SMALL, "num_hidden_layers": 1, "num_key_value_heads": 4}, tie_word_embeddings=True)
    ),
    "llama-biased-scaled": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "qwen2-mixed-windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=1024)),
}
STATIC = ("llama", "llama-one-layer", "llama-biased-scaled", "mistral", "qwen2", "qwen3")
HUGGING_FACE_ONLY = ("mistral-window", "qwen2-mixed-windows", "gpt2")
_MODELS: dict[str, Any] = {}
_LOGITS: dict[tuple[Any, tuple[int, ...]], Tensor] = {}


def model_of(name: str) -> Any:
    """A tiny model with random weights, biases and norms; the same for a name in one run."""
    if name not in _MODELS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = BUILDERS[name]().eval()
            for weight in model.parameters():
                weight.data.add_(0.15 * torch.randn_like(weight))
        _MODELS[name] = model
    return _MODELS[name]


def logits_without_cache(model: Any, tokens: Sequence[int]) -> Tensor:
    """(len(tokens), vocab): the plain forward that every engine is held to."""
    key = (model, tuple(tokens))
    if key not in _LOGITS:
        with torch.inference_mode():
            _LOGITS[key] = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
    return _LOGITS[key]


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    distance = (got - expected).abs().max().item()
    assert distance < TOLERANCE, f"logits differ by {distance:.2e}"
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def engines_of(name: str) -> list[Engine]:
    kinds: list[Any] = [HuggingFaceEngine] if name in HUGGING_FACE_ONLY else [StaticEngine, HuggingFaceEngine]
    return [kind(model_of(name), capacity=CAPACITY) for kind in kinds]

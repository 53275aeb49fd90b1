"""A batch is its requests: each one's logits are those of the engine that decodes it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import executor.embedded_pair
from executor.models.engines.base import Engine
from executor.models.engines.batched import batch_of
from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.prompt_lookup import PromptLookupEngine
from executor.models.engines.static import StaticEngine
from executor.models.names import Lookup
from tests.executor.models.tiny_models import BUILDERS, CAPACITY, HUGGING_FACE_ONLY, assert_same, model_of, some_tokens
from tests.settings import load

EMBEDDED = Path(executor.embedded_pair.__file__).parent / "weights" / "draft"
CASES = [
    *((name, StaticEngine) for name in BUILDERS if name not in HUGGING_FACE_ONLY),
    *((name, HuggingFaceEngine) for name in BUILDERS),
]


def _check(engine: Engine, num_requests: int = 3) -> None:
    prompts = [some_tokens(11, seed) for seed in range(num_requests)]
    batch = batch_of(engine, prompts, max_width=4)
    assert engine.length == 0
    for width in (1, 4, 3, 1):
        tokens = [some_tokens(width, 100 * width + request) for request in range(num_requests)]
        logits = batch.step(tokens)
        assert logits.shape == (num_requests, width, engine.vocab_size)
        for request, prompt in enumerate(prompts):
            engine.reset()
            engine.extend(prompt)
            assert_same(logits[request], engine.extend(tokens[request]))


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_rows_of_a_batch_are_the_requests_alone(name: str, kind: type) -> None:
    _check(kind(model_of(name), capacity=CAPACITY))


def test_the_fused_attention_of_half_precision_is_the_explicit_one() -> None:
    engine = StaticEngine(model_of("llama"), capacity=CAPACITY)
    prompts, tokens = [some_tokens(9, seed) for seed in range(2)], [some_tokens(3, seed) for seed in (5, 6)]
    explicit = batch_of(engine, prompts, max_width=3).step(tokens)
    fused = batch_of(StaticEngine(model_of("llama"), capacity=CAPACITY, dtype=torch.bfloat16), prompts, max_width=3)
    assert (explicit - fused.step(tokens)).abs().max() < 0.1 * explicit.abs().max()


def test_a_batch_of_the_resident_engine_is_its_requests() -> None:
    _check(load(EMBEDDED, engine="resident", capacity=64))


def test_what_no_batch_can_be_made_of_is_refused() -> None:
    engine = StaticEngine(model_of("llama"), capacity=20)
    with pytest.raises(ValueError, match=r"one length .* \[2, 3\]"):
        batch_of(engine, [[1, 2], [1, 2, 3]], max_width=1)
    with pytest.raises(ValueError, match="capacity of 20"):
        batch_of(engine, [[1] * 18], max_width=3)
    with pytest.raises(ValueError, match="runs no model"):
        batch_of(PromptLookupEngine(Lookup(), vocab_size=61, capacity=20), [[1]], max_width=1)

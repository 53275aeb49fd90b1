"""What an engine's cache promises: rollback and branches in place, misuse refused, what cannot run is named."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from executor.models.engines.hugging_face import HuggingFaceEngine, cache_argument
from executor.models.engines.lifted import why_unsupported
from executor.models.engines.static import StaticEngine
from tests.executor.models.tiny_models import (
    CAPACITY,
    SMALL,
    assert_same,
    engines_of,
    logits_without_cache,
    model_of,
    some_tokens,
)

pytestmark = pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small to share: threads would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_a_cache_goes_by_the_name_that_the_model_gives_it() -> None:
    class Older(torch.nn.Module):
        def forward(self, input_ids: Tensor, past_key_values: object = None) -> Tensor: ...

    class Newer(torch.nn.Module):
        def forward(self, input_ids: Tensor, cache: object = None, **kwargs: object) -> Tensor: ...

    assert cache_argument(Older()) == "past_key_values"
    assert cache_argument(Newer()) == "cache"


def test_branches_outgrow_the_room_made_for_them() -> None:
    tokens = some_tokens(20)
    engine = StaticEngine(model_of("llama"), capacity=CAPACITY)
    engine.extend(tokens)
    num_rows = 11
    engine.open_branches([20 - row for row in range(num_rows)])
    tails = [some_tokens(50, row) for row in range(num_rows)]
    for step in range(50):  # 550 slots, and more than one mask
        logits = engine.grow([tail[step] for tail in tails])
    for row, tail in enumerate(tails):
        assert_same(logits[row], logits_without_cache(model_of("llama"), tokens[: 20 - row] + tail)[-1])
    engine.adopt(10, 50)
    assert_same(engine.extend([3]), logits_without_cache(model_of("llama"), [*tokens[:10], *tails[10], 3])[-1:])


def test_branches_and_rollback_leave_the_prefix_where_it_is() -> None:
    engine = StaticEngine(model_of("llama"), capacity=CAPACITY)
    engine.extend(some_tokens(40))
    address, prefix = engine._cache.data_ptr(), engine._cache[:, :40].clone()
    engine.open_branches([40] * 8)
    for _ in range(4):
        engine.grow(some_tokens(8))
    engine.roll_back(30)
    assert engine._cache.data_ptr() == address
    assert torch.equal(engine._cache[:, :40], prefix)


@pytest.mark.parametrize("kind", [StaticEngine, HuggingFaceEngine])
def test_misuse_is_one_clear_error_and_changes_nothing(kind: Any) -> None:
    engine = kind(model_of("llama"), capacity=12)
    engine.extend(some_tokens(10))
    with pytest.raises(ValueError, match=r"context overflow: 10 cached and 3 new tokens exceed the capacity of 12"):
        engine.extend([1, 2, 3])
    with pytest.raises(ValueError, match="at least one token"):
        engine.extend([])
    with pytest.raises(ValueError, match="cannot roll back to length 11"):
        engine.roll_back(11)
    with pytest.raises(ValueError, match="no branches are open"):
        engine.grow([1])
    with pytest.raises(ValueError, match="no branches are open"):
        engine.adopt(0, 0)
    with pytest.raises(ValueError, match=r"must start within the 10 cached tokens, but got starts \[3, 11\]"):
        engine.open_branches([3, 11])
    engine.open_branches([10, 4])
    with pytest.raises(ValueError, match="each of the 2 open branches, but got 1"):
        engine.grow([1])
    engine.grow([1, 2])
    engine.grow([1, 2])
    with pytest.raises(ValueError, match="exceeds the capacity of 12"):
        engine.grow([1, 2])
    with pytest.raises(ValueError, match="cannot adopt row 2"):
        engine.adopt(2, 1)
    with pytest.raises(ValueError, match="its tail holds 2"):
        engine.adopt(1, 3)
    assert engine.length == 10
    engine.adopt(0, 2)
    assert engine.length == 12


@pytest.mark.parametrize("kind", [StaticEngine, HuggingFaceEngine])
def test_extend_and_roll_back_close_branches(kind: Any) -> None:
    engine = kind(model_of("llama"), capacity=CAPACITY)
    engine.extend(some_tokens(10))
    for close in (lambda: engine.extend([1]), lambda: engine.roll_back(5), lambda: engine.adopt(0, 0)):
        engine.open_branches([5, 5])
        engine.grow([1, 2])
        close()
        with pytest.raises(ValueError, match="no branches are open"):
            engine.grow([1, 2])


def test_unsupported_architectures_are_named() -> None:
    assert why_unsupported(model_of("llama").config, CAPACITY) is None
    assert why_unsupported(model_of("mistral-window").config, 7) is None  # never more than the window in the cache
    for name, reason in (
        ("gpt2", "model type 'gpt2'"),
        ("mistral-window", "sliding window of 7"),
        ("qwen2-mixed-windows", "sliding window of 6"),
    ):
        with pytest.raises(ValueError, match=reason):
            StaticEngine(model_of(name), capacity=CAPACITY)
    changed = LlamaConfig(**SMALL, hidden_act="gelu")
    assert "gelu" in str(why_unsupported(changed, CAPACITY))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "dynamic" in str(why_unsupported(LlamaConfig(**SMALL, rope_parameters=dynamic), CAPACITY))


def test_engines_draw_nothing_from_the_global_generator() -> None:
    model_of("llama")
    before = torch.random.get_rng_state()
    for engine, tokens in itertools.product(engines_of("llama"), ([1, 2, 3], [4])):
        engine.extend(tokens)
        engine.open_branches([1, 1])
        engine.grow([1, 2])
    assert torch.equal(torch.random.get_rng_state(), before)

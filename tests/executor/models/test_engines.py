"""Both engines against a forward without any cache, and against each other."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from executor.models.engines.base import Engine
from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.static import StaticEngine
from tests.executor.models.tiny_models import (
    BUILDERS,
    CAPACITY,
    HUGGING_FACE_ONLY,
    STATIC,
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


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["extend", "extend", "roll_back", "branch", "branch", "adopt", "reset"]),
        st.integers(0, 10**6),
        st.integers(1, 9),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=9,
)


def replay(engine: Engine, model: Any, operations: Sequence[tuple[str, int, int, int]]) -> None:
    """Any sequence of operations; after each, logits must be those of a forward over the same tokens from nothing."""
    line: list[int] = []
    rows: list[list[int]] = []
    starts: list[int] = []
    for kind, seed, size, steps in operations:
        if kind == "extend":
            new = some_tokens(min(size, CAPACITY - len(line)), seed)
            if not new:
                continue
            last_only = seed % 3 == 0
            got = engine.extend(new, last_only=last_only)
            line, rows = line + new, []
            expected = logits_without_cache(model, line)[-len(new) :]
            assert_same(got, expected[-1:] if last_only else expected)
        elif kind == "roll_back":
            line, rows = line[: seed % (len(line) + 1)], []
            engine.roll_back(len(line))
        elif kind == "branch":
            starts = [(seed // (row + 1)) % (len(line) + 1) for row in range(size)]
            if seed % 2:
                starts = [len(line)] * size
            engine.open_branches(starts)
            rows = [[] for _ in starts]
            steps = min(steps, CAPACITY - max(starts))
            if steps:
                tails = [some_tokens(size, seed + step) for step in range(steps)]
                got = torch.stack([engine.grow(new) for new in tails], dim=1)
                rows = [list(row) for row in zip(*tails, strict=True)]
                whole = [line[:start] + row for start, row in zip(starts, rows, strict=True)]
                assert_same(got, torch.stack([logits_without_cache(model, tokens)[-steps:] for tokens in whole]))
        elif kind == "adopt" and rows:
            row = seed % len(rows)
            num_tokens = size % (len(rows[row]) + 1)
            engine.adopt(row, num_tokens)
            line, rows = line[: starts[row]] + rows[row][:num_tokens], []
        elif kind == "reset":
            engine.reset()
            line, rows = [], []
        assert engine.length == len(line)
    room = CAPACITY - len(line)
    if room:  # whatever happened, the cache holds this line and no other
        assert_same(engine.extend([7]), logits_without_cache(model, [*line, 7])[-1:])


@pytest.mark.parametrize("name", [*STATIC, *HUGGING_FACE_ONLY])
def test_any_sequence_of_operations_equals_a_forward_from_nothing(name: str) -> None:
    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(OPERATIONS)
    def check(operations: list[tuple[str, int, int, int]]) -> None:
        for engine in engines_of(name):
            replay(engine, model_of(name), operations)

    check()


@pytest.mark.parametrize("name", [*STATIC, *HUGGING_FACE_ONLY])
def test_a_round_of_speculation_equals_a_forward_from_nothing(name: str) -> None:
    tokens = some_tokens(30)
    for engine in engines_of(name):
        engine.extend(tokens[:20], last_only=True)
        engine.extend(tokens[20:25])
        engine.open_branches([23, 25, 25, 21])  # hedges of three outcomes
        for step in range(4):
            engine.grow([some_tokens(4, row)[step] for row in range(4)])
        engine.adopt(3, 3)
        assert engine.length == 24
        line = tokens[:21] + some_tokens(4, 3)[:3]
        assert_same(engine.extend(tokens[25:]), logits_without_cache(model_of(name), line + tokens[25:])[-5:])


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("start", [0, 6, 10])
def test_a_round_of_one_branch_is_adopted_from_any_start(name: str, start: int) -> None:
    tokens, tail = some_tokens(10), some_tokens(3, 1)
    for engine in engines_of(name):
        engine.extend(tokens)
        engine.open_branches([start])
        expected = logits_without_cache(model_of(name), tokens[:start] + tail)
        for step, token in enumerate(tail):
            assert_same(engine.grow([token]), expected[start + step][None])
        engine.adopt(0, 2)
        assert engine.length == start + 2
        assert_same(engine.extend(tail[2:]), expected[-1:])


@pytest.mark.parametrize("name", STATIC)
def test_static_equals_hugging_face_at_every_width(name: str) -> None:
    static, reference = engines_of(name)
    for engine in (static, reference):
        engine.extend(some_tokens(11))
    for width in range(1, 17):
        tokens = some_tokens(width, width)
        assert_same(static.extend(tokens), reference.extend(tokens))
        for engine in (static, reference):
            engine.roll_back(11)
            engine.open_branches([11] * width)
        assert_same(static.grow(tokens), reference.grow(tokens))
        for engine in (static, reference):
            engine.roll_back(11)


@pytest.mark.parametrize("name", ["llama", "llama-one-layer", "qwen3"])
def test_features_are_the_last_blocks_outputs_before_the_final_norm(name: str) -> None:
    model = model_of(name)
    num_layers = model.config.num_hidden_layers
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for layer in model.model.layers]
    tokens = some_tokens(12)
    logits_without_cache(model, tokens)
    for hook in hooks:
        hook.remove()
    expected = torch.stack([output[0] for output in outputs], dim=1)
    for kind in (StaticEngine, HuggingFaceEngine):
        for num_kept in range(1, num_layers + 1):
            engine = kind(model, capacity=CAPACITY, num_feature_layers=num_kept)
            engine.extend(tokens[:9])
            engine.extend(tokens[9:], last_only=True)
            assert engine.features.shape == (3, num_kept, 32)
            torch.testing.assert_close(engine.features, expected[9:, -num_kept:], atol=1e-4, rtol=0)


def test_a_prompt_longer_than_one_chunk_is_one_line() -> None:
    tokens = some_tokens(600)
    engine = StaticEngine(model_of("qwen3"), capacity=640, num_feature_layers=1)
    expected = logits_without_cache(model_of("qwen3"), tokens)
    assert_same(engine.extend(tokens), expected)
    assert engine.features.shape == (600, 1, 32)
    engine.reset()
    assert_same(engine.extend(tokens, last_only=True), expected[-1:])


def test_half_precision_follows_the_module_in_half_precision() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("llama", "qwen3"):
            model = BUILDERS[name]().eval().to(torch.bfloat16)
            static = StaticEngine(model, capacity=CAPACITY, dtype=torch.bfloat16)
            tokens = some_tokens(24)
            got = torch.cat([static.extend(tokens[:20]), static.extend(tokens[20:])])
            assert got.dtype == torch.float32
            distance = (got - logits_without_cache(model, tokens)).abs().max().item()
            assert distance < 0.02, f"{name}: {distance=:.4f}, at logits of about 0.2"
            static.open_branches([24, 20])
            branched = static.grow([1, 2])
            expected = logits_without_cache(model, [*tokens[:20], 2])[-1]
            assert (branched[1] - expected).abs().max().item() < 0.02


def test_float64_agrees_to_rounding() -> None:
    model = BUILDERS["qwen2"]().double().eval()
    engine = StaticEngine(model, capacity=CAPACITY, dtype=torch.float64)
    tokens = some_tokens(24)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(engine.extend(tokens), expected.float(), atol=1e-6, rtol=0)


def test_a_cut_head_gives_the_first_columns() -> None:
    tokens = some_tokens(8)
    for kind in (StaticEngine, HuggingFaceEngine):
        engine = kind(model_of("llama"), capacity=CAPACITY, vocab_size=50)
        assert engine.vocab_size == 50
        assert_same(engine.extend(tokens), logits_without_cache(model_of("llama"), tokens)[:, :50])

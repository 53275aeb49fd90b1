"""Both engines against a forward without any cache, and against each other."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from executor.models.engines.hugging_face import HuggingFaceEngine, cache_argument
from executor.models.engines.lifted import why_unsupported
from executor.models.engines.static import StaticEngine

pytestmark = pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")

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


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small to share: threads would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


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


def test_a_cache_goes_by_the_name_that_the_model_gives_it() -> None:
    class Older(torch.nn.Module):
        def forward(self, input_ids: Tensor, past_key_values: object = None) -> Tensor: ...

    class Newer(torch.nn.Module):
        def forward(self, input_ids: Tensor, cache: object = None, **kwargs: object) -> Tensor: ...

    assert cache_argument(Older()) == "past_key_values"
    assert cache_argument(Newer()) == "cache"


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

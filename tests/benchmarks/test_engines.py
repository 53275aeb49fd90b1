"""How much faster the static engine is than the Hugging Face modules: one thread, sizes of the embedded pair.

Run on free cores with `pytest -m benchmark tests/benchmarks/test_engines.py -s`. The two sides take turns, step by
step, and medians are compared, so that a busy machine slows both alike.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from executor.models.engines.hugging_face import HuggingFaceEngine, cache_argument
from executor.models.engines.static import StaticEngine

CONTEXT = 160
SHAPES = {
    "draft 1x128": {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 344},
    "draft 1x256": {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 688},
    "target 12x192": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 512},
}
SMALLEST_RATIO = {"draft 1x128": 1.9, "draft 1x256": 1.5, "target 12x192": 1.1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def model_of(shape: str) -> Any:
    settings = SHAPES[shape]
    config = LlamaConfig(vocab_size=2048, head_dim=64, num_key_value_heads=settings["num_attention_heads"], **settings)
    return LlamaForCausalLM(config).eval()


def medians_us(one: Callable[[], object], two: Callable[[], object], repeats: int = 60) -> tuple[float, float]:
    """Median time of each, microseconds, by turns; the first few are warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 5):
        for run, seen in zip((one, two), times, strict=True):
            start = time.perf_counter()
            run()
            seen.append(time.perf_counter() - start)
    return median(times[0][5:]) * 1e6, median(times[1][5:]) * 1e6


@pytest.mark.benchmark
@pytest.mark.parametrize("shape", list(SHAPES))
def test_static_extend_beats_the_modules(shape: str) -> None:
    """Against the modules as `generate` calls them: DynamicCache, no mask, no engine around them."""
    model = model_of(shape)
    tokens = torch.randint(2048, (CONTEXT + 16,)).tolist()
    static = StaticEngine(model, capacity=512)
    static.extend(tokens[:CONTEXT])
    cache = DynamicCache(config=model.config)
    kept = {cache_argument(model): cache}
    with torch.inference_mode():
        model(input_ids=torch.tensor([tokens[:CONTEXT]]), use_cache=True, **kept)
    for width in (1, 2, 3, 5, 9):

        def by_static(width: int = width) -> None:
            static.extend(tokens[:width])
            static.roll_back(CONTEXT)

        @torch.inference_mode()
        def by_modules(width: int = width) -> None:
            positions = torch.arange(CONTEXT, CONTEXT + width)[None]
            ids = torch.tensor([tokens[:width]])
            model(input_ids=ids, position_ids=positions, use_cache=True, **kept)
            cache.crop(-width)

        fast, slow = medians_us(by_static, by_modules)
        print(f"{shape} extend {width}: static {fast:.0f} us, modules {slow:.0f} us, ratio {slow / fast:.2f}")
        if width == 1:
            assert slow / fast >= SMALLEST_RATIO[shape], f"{shape}: ratio {slow / fast:.2f}"


@pytest.mark.benchmark
@pytest.mark.parametrize("shape", list(SHAPES))
def test_static_branches_beat_the_hugging_face_engine(shape: str) -> None:
    model = model_of(shape)
    tokens = torch.randint(2048, (CONTEXT + 16,)).tolist()
    engines = StaticEngine(model, capacity=512), HuggingFaceEngine(model, capacity=512)
    for engine in engines:
        engine.extend(tokens[:CONTEXT])
    for num_rows in (1, 2, 4, 8):

        def grow_four(engine: Any, num_rows: int = num_rows) -> None:
            engine.open_branches([CONTEXT] * num_rows)
            for _ in range(4):
                engine.grow(tokens[:num_rows])

        fast, slow = medians_us(lambda: grow_four(engines[0]), lambda: grow_four(engines[1]), repeats=20)
        print(f"{shape} grow {num_rows} rows x 4: static {fast:.0f} us, engine {slow:.0f} us, ratio {slow / fast:.2f}")
        assert slow / fast > 1

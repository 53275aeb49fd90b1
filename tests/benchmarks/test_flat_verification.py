"""How flat the time of the static engine is from one token to eight: SmolLM2 and the embedded target, one thread, one core.

Run on free cores with `pytest -m benchmark tests/benchmarks/test_flat_verification.py -s`. Layouts and widths take turns, as
they do in decoding, and the shortest times are compared; the thread's own time is printed beside, which others who want the
core do not lengthen (what they do to caches and memory, they do).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch

from executor.models.engines.base import Engine
from executor.models.loading import load_engine
from executor.models.names import resolve_model
from executor.models.settings import EngineSettings, Layout

CONTEXT = 160
WIDTHS = (1, 2, 4, 5, 8, 12, 16)
REPEATS = {"smollm2": 30, "embedded": 200}


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    yield
    torch.set_num_threads(num_threads)
    if cores:
        os.sched_setaffinity(0, cores)


def best_ms(name: str) -> dict[tuple[Layout, int], float]:
    """Shortest milliseconds of each layout and width, by turns."""
    try:
        folder = resolve_model(name, "target")
    except ValueError as absent:
        pytest.skip(str(absent))
    engines: dict[Layout, Engine] = {
        layout: load_engine(folder, EngineSettings(capacity=256, layout=layout)) for layout in Layout
    }
    print(f"\n{name}: auto took {getattr(engines[Layout.AUTO], 'layouts', {})}")
    tokens = torch.randint(5, 2000, (CONTEXT + max(WIDTHS),)).tolist()
    walls: dict[tuple[Layout, int], float] = {}
    own: dict[tuple[Layout, int], float] = {}
    for engine in engines.values():
        engine.extend(tokens[:CONTEXT], last_only=True)
    for _ in range(REPEATS[name]):
        for width in WIDTHS:
            for layout, engine in engines.items():
                starts = time.perf_counter(), time.thread_time()
                engine.extend(tokens[CONTEXT : CONTEXT + width])
                ends = time.perf_counter(), time.thread_time()
                engine.roll_back(CONTEXT)
                for seen, start, end in zip((walls, own), starts, ends, strict=True):
                    seen[layout, width] = min(seen.get((layout, width), float("inf")), 1e3 * (end - start))
    for layout in Layout:
        shown = ", ".join(f"{width}: {walls[layout, width]:.2f} ({own[layout, width]:.2f})" for width in WIDTHS)
        print(f"{name} {layout}, ms by tokens, wall (thread): {shown}")
    return walls


@pytest.mark.benchmark
def test_verification_of_smollm2_is_flat() -> None:
    best = best_ms("smollm2")
    one = best[Layout.AUTO, 1]
    assert one <= 1.03 * best[Layout.PLAIN, 1], "one token became slower"
    assert best[Layout.AUTO, 4] <= 1.15 * one
    assert best[Layout.AUTO, 8] <= 1.35 * one


@pytest.mark.benchmark
def test_the_embedded_target_is_no_slower_at_any_width() -> None:
    best = best_ms("embedded")
    slower = {width: best[Layout.AUTO, width] / best[Layout.PLAIN, width] for width in WIDTHS}
    assert max(slower.values()) <= 1.05, slower


@pytest.mark.benchmark
def test_plain_decoding_reads_the_weights_at_the_memorys_speed() -> None:
    """A step against the time in which one core reads as many bytes, and against transformers' own `generate`, by turns."""
    try:
        folder = resolve_model("smollm2", "target")
    except ValueError as absent:
        pytest.skip(str(absent))
    from transformers import AutoModelForCausalLM

    engine = load_engine(folder, EngineSettings(capacity=256))
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_bytes = sum(value.nbytes for value in module.parameters())  # the embedding table is the head as well
    memory = torch.ones(num_bytes // 4)
    tokens = torch.randint(5, 2000, (1, CONTEXT)).tolist()[0]
    engine.extend(tokens, last_only=True)
    prompt, num_tokens = torch.tensor([tokens]), 8
    best = {"read": float("inf"), "step": float("inf"), "generate": float("inf")}

    def keep(name: str, start_s: float, num: int = 1) -> None:
        best[name] = min(best[name], 1e3 * (time.perf_counter() - start_s) / num)

    def generate(num: int) -> None:
        module.generate(prompt, max_new_tokens=num, min_new_tokens=num, do_sample=False)

    with torch.inference_mode():
        for _ in range(8):
            start_s = time.perf_counter()
            memory.sum()
            keep("read", start_s)
            for _ in range(4):
                start_s = time.perf_counter()
                engine.extend([7])
                keep("step", start_s)
                engine.roll_back(CONTEXT)
            start_s = time.perf_counter()
            generate(1)
            prefill_s = time.perf_counter() - start_s
            start_s = time.perf_counter()
            generate(1 + num_tokens)
            keep("generate", start_s + prefill_s, num_tokens)
    shown = ", ".join(f"{name} {value:.1f} ms" for name, value in best.items())
    rate = num_bytes / best["read"] / 1e6
    print(
        f"\nsmollm2, {num_bytes / 1e6:.0f} MB at {rate:.1f} GB/s: {shown}; step / read {best['step'] / best['read']:.2f}, "
        f"generate / step {best['generate'] / best['step']:.2f}"
    )
    assert best["step"] <= 1.25 * best["read"]
    assert best["generate"] >= best["step"]

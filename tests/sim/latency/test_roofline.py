"""The roofline: the physics, model sizes as published, how sure it is, and one measured GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sim.decoding.model_shapes import SHAPES, named_shape
from sim.latency.roofline import DEVICES, Hardware, RooflineLatency, check_memory
from sim.latency.uncertain import Uncertain

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "h100_2026-11-27.json"
LLAMA_8B, QWEN_HALF_B = named_shape("llama-3.1-8b"), named_shape("qwen2.5-0.5b")
DEVICE = Hardware(name="A", bandwidth_bytes_per_s=2e12, peak_flops_per_s=300e12, overhead_s=1e-4, layer_s=1e-5)
PAIR = RooflineLatency(target=LLAMA_8B, draft=QWEN_HALF_B, target_hardware=DEVICE, draft_hardware=DEVICE, host_s=2e-5)


@pytest.mark.parametrize(
    ("name", "num_billions"),
    [
        ("llama-68m", 0.06803),
        ("qwen2.5-0.5b", 0.494),
        ("llama-3.2-1b", 1.236),
        ("llama-3.1-8b", 8.030),
        ("llama-2-13b", 13.016),
        ("qwen2.5-32b", 32.764),
        ("llama-3.1-70b", 70.554),
    ],
)
def test_shapes_have_the_published_number_of_weights(name: str, num_billions: float) -> None:
    assert SHAPES[name].num_parameters == pytest.approx(1e9 * num_billions, rel=1e-3)


def test_a_step_is_flat_until_the_flops_bind() -> None:
    num_weights, fixed_s = 8.030e9 - 128256 * 4096, 1e-4 + 32e-5  # the embedding is not read
    one, few, many = PAIR.mean_array("verify", [1, 8, 2000], 1, 0)
    assert one == pytest.approx(fixed_s + 2 * num_weights / 2e12, rel=1e-3)
    assert few == pytest.approx(one, rel=1e-2)
    assert many == pytest.approx(fixed_s + 2 * num_weights * 2000 / 300e12, rel=0.05)
    near, far = PAIR.mean_array("verify", 1, 1, [0, 10_000])
    assert far - near == pytest.approx(10_000 * 2 * 32 * 8 * 128 * 2 / 2e12)  # keys and values of 8 heads
    draft = PAIR.mean_array("draft", 1, 1, 0)
    assert draft == pytest.approx(1e-4 + 24e-5 + 2 * 0.494e9 / 2e12, rel=1e-3)  # a tied embedding is the head, and read
    four_bits = replace(PAIR, bytes_per_weight=0.5)
    assert four_bits.mean_array("verify", 1, 1, 0) == pytest.approx(fixed_s + num_weights / 2 / 2e12, rel=1e-3)


def test_every_assumption_moves_what_it_is_about_and_nothing_else() -> None:
    unsure = replace(PAIR, uncertainty=0.1)
    moves = {(move.group, move.term, move.moved_to > move.value): move for move in unsure.moved()}
    assert len(moves) == len(unsure.moved()) == 14
    slow = moves["verify", "bandwidth_bytes_per_s", False]
    assert (slow.value, slow.moved_to) == pytest.approx((2e12, 1.8e12))
    fixed_s = 1e-4 + 32e-5
    for kind, factor in (("verify", 1 / 0.9), ("draft", 1.0)):
        before, after = (latency.mean_array(kind, 1, 1, 100) for latency in (PAIR, slow.latency))
        assert after - fixed_s * (factor > 1) == pytest.approx(factor * (before - fixed_s * (factor > 1)))
    assert moves["host", "host_s", True].latency.mean_array("host", 3, 1, 100) == pytest.approx(1.1 * 2e-5)
    assert replace(PAIR, uncertainty=0.0).moved() == []
    assert isinstance(PAIR, Uncertain)


@pytest.mark.parametrize("settings", [{"uncertainty": 1.0}, {"uncertainty": float("nan")}, {"host_s": float("nan")}])
def test_numbers_that_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        replace(PAIR, **settings)


def test_the_measured_gpu_is_met_where_bytes_bind() -> None:
    measured = json.loads(MEASURED.read_text())["steps"]["median_ms"]
    device = Hardware.named("h100")
    pair = RooflineLatency(target=LLAMA_8B, draft=QWEN_HALF_B, target_hardware=device, draft_hardware=device)
    for key, kind, num_tokens, tolerance in (
        ("verify 1 x 1", "verify", 1, 0.05),
        ("verify 8 x 1", "verify", 8, 0.20),  # kernels for several rows are slower than the bytes
        ("draft 1 x 1", "draft", 1, 0.20),  # launches bind, not bytes
    ):
        found_ms = 1e3 * float(pair.mean_array(kind, num_tokens, 1, 256))
        assert found_ms == pytest.approx(measured[key], rel=tolerance), key


def test_a_pair_that_does_not_fit_is_refused() -> None:
    two = Hardware.named("h100", num_devices=2)
    pair = RooflineLatency(target=named_shape("llama-3.1-70b"), draft=LLAMA_8B, target_hardware=two, draft_hardware=two)
    check_memory(pair, 8192, is_shared=False)  # 141 and 16 GB, in 160 each
    check_memory(replace(pair, draft=QWEN_HALF_B), 8192, is_shared=True)
    with pytest.raises(ValueError, match=r"the pair needs 161 GB .* but 2 x h100 has 160 GB: give more devices"):
        check_memory(pair, 8192, is_shared=True)
    with pytest.raises(ValueError, match=r"the target needs 152 GB .* 32768 tokens .* but h100 has 80 GB"):
        check_memory(replace(pair, target_hardware=Hardware.named("h100")), 32768, is_shared=False)
    with pytest.raises(ValueError, match=r"the draft needs 16 GB .* but l4"):
        check_memory(
            replace(pair, draft_hardware=replace(Hardware.named("l4"), memory_bytes=1e10)), 64, is_shared=False
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "h900"}, "no device is called 'h900'; choose one of a100"),
        ({"num_devices": 0}, "at least 1 device"),
        ({"bandwidth_share": 0.0}, r"bandwidth_share must lie in \(0, 1\]"),
        ({"peak_share": 1.5}, r"peak_share must lie in \(0, 1\]"),
        ({"layer_s": -1.0}, "overheads at least 0"),
    ],
)
def test_impossible_hardware_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hardware.named(**{"name": "h100", **settings})  # type: ignore[arg-type]  # that is what is tested


def test_devices_are_all_there() -> None:
    for name, sheet in DEVICES.items():
        one, four = Hardware.named(name), Hardware.named(name, num_devices=4, peak_share=1.0)
        assert four.peak_flops_per_s == 4 * sheet.peak_flops_per_s
        assert (four.bandwidth_bytes_per_s, four.memory_bytes) == (
            4 * one.bandwidth_bytes_per_s,
            4 * sheet.memory_bytes,
        )

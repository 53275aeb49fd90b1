"""Latency models: means, draws and arrays of one model agree, and the physics points the right way."""

from __future__ import annotations

import numpy as np
import pytest

from sim.decoding.model_shapes import named_shape
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from sim.latency.fitted import FittedLatency
from sim.latency.roofline import Hardware, RooflineLatency
from traces.fits.calibration import Calibration, LatencyFit
from traces.fits.latency import TERMS
from traces.schema import OpShape

COEFFICIENTS = (2e-3, 1e-4, 2e-6, 3e-4, 1e-7, 2e-7, 5e-4, 2e-4)
RATIOS = tuple(np.linspace(0.5, 1.5, 200).tolist())


def fit(least: int = 1) -> LatencyFit:
    return LatencyFit(
        coefficients=COEFFICIENTS,
        intervals=((0.0, 0.0),) * len(TERMS),
        ratios=RATIOS,
        least=least,
        left_out=(),
        r2=None,
        error=0.0,
        num_ops=1,
        num_requests=1,
    )


def fitted(*, is_noisy: bool = True) -> FittedLatency:
    fits = {"draft": fit(), "verify": fit(), "host": fit(0), "target_prefill": fit(), "draft_prefill": fit()}
    calibration = Calibration(fits=fits, round_check=None, num_requests=1, num_unclean=0)
    return FittedLatency(calibration, is_noisy=is_noisy)


DEVICE = Hardware(name="A", bandwidth_bytes_per_s=2e12, peak_flops_per_s=300e12, overhead_s=1e-4)
MODELS = {
    "constant": ConstantLatency(draft_s=0.002, verify_s=0.02, host_s=1e-4),
    "fitted": fitted(),
    "means": fitted(is_noisy=False),
    "roofline": RooflineLatency(
        target=named_shape("llama-3.1-8b"),
        draft=named_shape("llama-68m"),
        target_hardware=DEVICE,
        draft_hardware=DEVICE,
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("actor", "kind"), [("target", "verify"), ("draft", "draft"), ("draft", "branch"), ("host", "host")]
)
def test_arrays_draws_and_means_agree(name: str, actor: str, kind: str) -> None:
    model: LatencyModel = MODELS[name]
    tokens, branches, context = np.array([1, 2, 5, 9]), np.array([[1], [3]]), 120
    array = model.mean_array(kind, tokens, branches, context)
    assert array.shape == (2, 4)
    rng = np.random.default_rng(7)
    for (row, column), mean in np.ndenumerate(array):
        op = OpShape(actor, kind, int(tokens[column]), int(branches[row, 0]), context)
        assert model.mean_s(op) == pytest.approx(mean, rel=1e-12)
        draws = np.array([model.draw_s(op, rng) for _ in range(400)])
        stderr = max(draws.std() / np.sqrt(len(draws)), 1e-12 * mean)
        assert abs(draws.mean() - mean) <= 4 * stderr + 1e-15


def test_a_fitted_draw_is_a_recorded_ratio_times_the_mean() -> None:
    op, rng = OpShape("target", "verify", 5, 1, 300), np.random.default_rng(0)
    model = fitted()
    ratios = np.array([model.draw_s(op, rng) for _ in range(2000)]) / model.mean_s(op)
    assert 0.5 <= ratios.min() < 0.52
    assert 1.48 < ratios.max() <= 1.5
    assert fitted(is_noisy=False).draw_s(op, rng) == model.mean_s(op)


def test_the_two_prefills_are_apart() -> None:
    model = ConstantLatency(draft_s=0, verify_s=0, draft_prefill_s=0.3, target_prefill_s=0.7)
    assert model.mean_array("prefill", 9, 1, 0) == 0.7
    assert model.mean_array("prefill", 9, 1, 0, actor="draft") == 0.3
    assert model.mean_s(OpShape("draft", "prefill", 9, 1, 0)) == 0.3


def test_constant_latency_ignores_every_shape() -> None:
    model = MODELS["constant"]
    shapes = np.arange(1, 50)
    assert set(model.mean_array("verify", shapes, shapes, shapes).tolist()) == {0.02}
    with pytest.raises(ValueError, match="draft_s must be at least 0"):
        ConstantLatency(draft_s=-1.0, verify_s=1.0)


def test_unknown_operations_are_refused() -> None:
    for model in MODELS.values():
        with pytest.raises(ValueError, match="no operation 'nap'"):
            model.mean_array("nap", 1, 1, 1)
        with pytest.raises(ValueError, match="no latency is fitted"):
            model.mean_s(OpShape("target", "draft", 1, 1, 1))

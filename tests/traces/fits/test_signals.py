"""Logistic curves and rank laws recover what made the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from traces.fits.signals import area_under_curve, fit_ranks, fit_signal
from traces.schema import FinishReason, RequestTrace, Signal


def _trace(margins: np.ndarray, accepted: np.ndarray, ranks: np.ndarray) -> RequestTrace:
    return RequestTrace(
        request_id=0,
        prompt_id="p",
        num_prompt_tokens=5,
        max_new_tokens=len(margins),
        temperature=1.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=tuple(np.where(accepted, 0, ranks).tolist()),
        signals=tuple(Signal(0.5, 1.0, float(margin)) for margin in margins),
    )


def test_the_curve_is_recovered() -> None:
    rng = np.random.default_rng(0)
    margins = rng.exponential(1.0, 20_000)
    accepted = rng.random(20_000) < 1 / (1 + np.exp(0.7 - 1.3 * margins))
    fit = fit_signal([_trace(margins, accepted, rng.geometric(0.4, 20_000))])
    assert fit.intercept == pytest.approx(-0.7, abs=0.1)
    assert fit.slope == pytest.approx(1.3, abs=0.1)
    assert fit.log_loss < fit.base_log_loss
    assert 0.6 < fit.auc < 0.9


def test_the_rank_law_is_recovered() -> None:
    rng = np.random.default_rng(1)
    ranks = rng.geometric(0.4, 20_000)
    fit = fit_ranks([_trace(np.ones(20_000), np.zeros(20_000, bool), ranks)])
    assert fit.decay == pytest.approx(0.6, abs=0.02)
    assert fit.tail < 0.01


def test_area_is_the_chance_of_the_right_order() -> None:
    assert area_under_curve(np.array([1.0, 2.0, 3.0]), np.array([False, True, True])) == 1.0
    assert area_under_curve(np.array([1.0, 1.0]), np.array([False, True])) == 0.5


def test_nothing_to_fit_is_refused(make_trace: Callable[..., RequestTrace]) -> None:
    with pytest.raises(ValueError, match="no curve"):
        fit_signal([make_trace(acceptance=1.1)])
    with pytest.raises(ValueError, match="unknown signal"):
        fit_signal([make_trace()], "luck")

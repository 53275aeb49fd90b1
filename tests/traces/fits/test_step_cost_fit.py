"""Fits find the law that made the measurements, and hold on a measured grid."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from traces.fits.step_cost_fit import (
    Measurement,
    Prior,
    StepCostFit,
    draft_prior,
    fit_step_costs,
    target_prior,
    total_s,
)
from traces.fits.step_costs import ForwardCost, StepCosts

TARGET = ForwardCost(floor_s=0.030, token_s=1.2e-4, sharpness=3.0, context_s=1.5e-7, request_s=1e-5, uncaptured_s=2e-3)
DRAFT = ForwardCost(floor_s=0.003, token_s=2e-5, sharpness=3.0, context_s=5e-8, request_s=1e-5, uncaptured_s=1e-3)
HOST_S = 1e-3


def made_up(noise: float, seed: int = 0, num: int = 60) -> list[Measurement]:
    """Stretches of a server's steps that the two laws above explain, with relative noise."""
    rng = np.random.default_rng(seed)
    measured = []
    for index in range(num):
        requests, length, context = int(rng.integers(1, 256)), int(rng.integers(1, 6)), int(rng.integers(50, 9000))
        target = np.array([[requests * (length + 1), requests * context, requests, 100.0]])
        draft = np.array([[requests, requests * context, requests, 100.0 * length]]) if index % 2 else None
        name = "" if draft is None else "small"
        exact = Measurement(seconds=1.0, target=target, draft=draft, draft_name=name)
        seconds = total_s(exact, StepCosts(target=TARGET, draft=DRAFT, host_s=HOST_S if name else 0.0)) * np.exp(
            noise * rng.normal()
        )
        measured.append(Measurement(seconds=seconds, target=target, draft=draft, draft_name=name, relative_error=0.01))
    return measured


def fit(measured: list[Measurement]) -> StepCostFit:
    prior = target_prior(0.03)
    return fit_step_costs(measured, prior, {"small": draft_prior(0.004, prior.guess)})


def test_a_fit_predicts_steps_that_it_never_saw() -> None:
    fitted = fit(made_up(noise=0.0))
    held_out = made_up(noise=0.0, seed=1)
    errors = [total_s(m, fitted.step_costs(m.draft_name)) / m.seconds - 1 for m in held_out]
    assert np.abs(errors).max() < 0.02, f"worst error {np.abs(errors).max():.3f}"
    assert fitted.mean_abs_error < 0.005


def test_intervals_hold_the_truth_and_widen_with_the_noise() -> None:
    quiet, noisy = fit(made_up(noise=0.01)), fit(made_up(noise=0.05))
    inside = 0
    for name in ("floor_s", "token_s", "context_s"):
        low, high = quiet.intervals[f"target.{name}"]
        inside += low <= getattr(TARGET, name) <= high
        wide_low, wide_high = noisy.intervals[f"target.{name}"]
        assert wide_high / wide_low > high / low, f"the interval of {name} does not widen"
    assert inside >= 2, "95% intervals miss the truth"


def test_what_the_data_leave_open_stays_at_the_prior() -> None:
    one_request = [Measurement(seconds=3.0, target=np.array([[1.0, 100.0, 1.0, 100.0]]))]
    prior = target_prior(0.03)
    fitted = fit_step_costs(one_request, prior)
    assert fitted.target.token_s == pytest.approx(prior.guess.token_s, rel=0.05)
    assert fitted.residuals[0] == pytest.approx(0.0, abs=0.01)


def test_parameters_without_a_spread_are_kept() -> None:
    prior = Prior(guess=ForwardCost(floor_s=0.02, token_s=1e-4, request_s=3e-6), spread={"floor_s": 1.0})
    fitted = fit_step_costs(made_up(noise=0.0)[::2], prior)
    assert (fitted.target.token_s, fitted.target.request_s) == (1e-4, 3e-6)


def test_a_draft_without_a_prior_and_an_empty_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="small"):
        fit_step_costs(made_up(noise=0.0), target_prior(0.03))
    with pytest.raises(ValueError, match="measurements"):
        fit_step_costs([], target_prior(0.03))


def test_spreads_of_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="speed"):
        Prior(guess=TARGET, spread={"speed": 1.0})


GRID = Path(__file__).parents[3] / ".." / "shared" / "data" / "serving" / "verify_cost_qwen3_1p7b_h100.csv"


@pytest.fixture
def grid() -> list[Measurement]:
    """The measured verify-cost grid: each point is one forward of one token a request."""
    if not GRID.exists():
        pytest.skip(f"{GRID} is not here")
    points = []
    with GRID.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            requests, context = float(row["num_requests"]), float(row["context_tokens_per_request"])
            forward = np.array([[requests, requests * context, requests, 1.0]])
            points.append(Measurement(seconds=float(row["step_ms"]) / 1e3, target=forward, relative_error=0.03))
    return points


def held_out_errors(points: list[Measurement], prior: Prior) -> np.ndarray:
    """Relative error of each point, by a fit to all others."""
    errors = []
    for index, point in enumerate(points):
        fitted = fit_step_costs([*points[:index], *points[index + 1 :]], prior)
        errors.append(total_s(point, fitted.step_costs()) / point.seconds - 1)
    return np.array(errors)


def test_the_additive_law_predicts_held_out_points_of_a_measured_grid(grid: list[Measurement]) -> None:
    errors = held_out_errors(grid, target_prior(0.002))
    assert np.abs(errors).max() < 0.10, f"held-out errors {np.round(errors, 3)}"


def test_a_law_without_contexts_fails_on_the_measured_grid(grid: list[Measurement]) -> None:
    prior = target_prior(0.002)
    without = Prior(guess=ForwardCost(floor_s=0.002, token_s=prior.guess.token_s), spread=prior.spread)
    assert np.abs(held_out_errors(grid, without)).max() > 0.5


def test_the_measured_cost_of_context_is_what_was_published(grid: list[Measurement]) -> None:
    """0.0356 microseconds a token of context, for this model on one H100."""
    fitted = fit_step_costs(grid, target_prior(0.002))
    assert fitted.target.context_s == pytest.approx(0.0356e-6, rel=0.05)

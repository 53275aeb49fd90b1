"""Arrivals follow the laws that they name, and a finite run is the one that `vllm bench serve` makes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.serving.workload.arrivals import (
    Arrivals,
    BenchServe,
    ClosedLoop,
    ConstantArrivals,
    GammaArrivals,
    PoissonArrivals,
    WeibullArrivals,
)
from traces.workload import Floats

RATE = 4.0
LAWS: dict[str, tuple[Arrivals, float, Callable[[Floats], Floats]]] = {  # arrivals, CV of the gaps, their distribution
    "poisson": (PoissonArrivals(RATE), 1.0, stats.expon(scale=1 / RATE).cdf),
    "gamma bursty": (GammaArrivals(RATE, 0.25), 2.0, stats.gamma(0.25, scale=1 / (RATE * 0.25)).cdf),
    "gamma regular": (GammaArrivals(RATE, 4.0), 0.5, stats.gamma(4.0, scale=1 / (RATE * 4.0)).cdf),
    "gamma by CV": (GammaArrivals.with_cv(RATE, 3.0), 3.0, stats.gamma(1 / 9, scale=9 / RATE).cdf),
    "weibull bursty": (WeibullArrivals(RATE, 0.5), math.sqrt(5), stats.weibull_min(0.5, scale=1 / (RATE * 2)).cdf),
    "weibull regular": (
        WeibullArrivals(RATE, 2.0),
        math.sqrt(4 / math.pi - 1),
        stats.weibull_min(2.0, scale=2 / (RATE * math.sqrt(math.pi))).cdf,
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_gaps_have_the_rate_the_burstiness_and_the_law_asked_for(name: str) -> None:
    law, gap_cv, distribution = LAWS[name]
    num = 200_000
    gaps = np.diff(law.draw_s(num, np.random.default_rng(1)), prepend=0.0)
    assert law.max_concurrency is None
    for moment, expected in ((gaps, 1 / RATE), (gaps**2, (1 + gap_cv**2) / RATE**2)):
        stderr = moment.std() / math.sqrt(num)
        error = moment.mean() - expected
        assert abs(error) <= 4 * stderr, f"{error=:.4g} is {error / stderr:.1f} standard errors off"
    assert gaps.std() / gaps.mean() == pytest.approx(gap_cv, rel=0.05)
    least = 1e-6  # less is lost in the sum
    below = distribution(np.array(least))
    assert stats.kstest(gaps[gaps > least], lambda gap: (distribution(gap) - below) / (1 - below)).pvalue > 1e-4
    assert abs((gaps <= least).mean() - below) <= 4 * math.sqrt(below * (1 - below) / num) + 1e-9
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) <= 4 / math.sqrt(num)  # gaps do not know of each other


def test_constant_and_infinitely_regular_gaps_are_equal() -> None:
    rng = np.random.default_rng(0)
    for law in (ConstantArrivals(RATE), GammaArrivals(RATE, math.inf), GammaArrivals.with_cv(RATE, 0.0)):
        assert law.draw_s(4, rng).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_closed_loop_is_ready_at_0_and_bounded() -> None:
    loop = ClosedLoop(3)
    assert loop.draw_s(5, np.random.default_rng(0)).tolist() == [0.0] * 5
    assert loop.max_concurrency == 3


@given(
    num=st.integers(1, 60),
    rate=st.floats(0.01, 1000.0),
    burstiness=st.sampled_from([0.05, 0.5, 1.0, 7.0, math.inf]),
    seed=st.integers(0, 2**32),
)
def test_a_finite_run_is_that_of_vllm(num: int, rate: float, burstiness: float, seed: int) -> None:
    run = BenchServe(request_rate=rate, burstiness=burstiness, max_concurrency=16)
    arrival_s = run.draw_s(num, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    delays: list[float] = []  # as vLLM does it: a gap for each request, summed up, stretched to end at num / rate
    for _ in range(num):
        gap = 1 / rate if math.isinf(burstiness) else rng.gamma(burstiness, 1 / (rate * burstiness))
        delays.append(gap + (delays[-1] if delays else 0.0))
    stretch = num / rate / delays[-1]
    np.testing.assert_allclose(arrival_s, [delay * stretch for delay in delays], rtol=1e-9, atol=1e-300)
    assert arrival_s[-1] == num / rate
    assert arrival_s[0] > 0 or burstiness == 0.05  # the first request waits for its gap, however short
    assert (np.diff(arrival_s) >= 0).all()
    assert run.max_concurrency == 16


def test_a_run_without_a_rate_is_ready_at_0() -> None:
    assert BenchServe().draw_s(3, np.random.default_rng(0)).tolist() == [0.0] * 3
    assert BenchServe().max_concurrency is None


def test_gaps_that_all_round_to_0_are_not_stretched() -> None:
    arrival_s = BenchServe(request_rate=2.0, burstiness=1e-9).draw_s(3, np.random.default_rng(0))
    assert arrival_s.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", LAWS)
def test_fewer_requests_are_the_first_of_more_and_rates_only_stretch(name: str) -> None:
    law = LAWS[name][0]
    many = law.draw_s(100, np.random.default_rng(5))
    assert law.draw_s(30, np.random.default_rng(5)).tolist() == many[:30].tolist()
    faster = type(law)(**{**vars(law), "arrivals_per_s": 2 * RATE})
    np.testing.assert_allclose(faster.draw_s(100, np.random.default_rng(5)), many / 2, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(
    "make",
    [
        PoissonArrivals,
        ConstantArrivals,
        lambda value: GammaArrivals(value, 1.0),
        lambda value: GammaArrivals(1.0, value),
        lambda value: WeibullArrivals(value, 1.0),
        lambda value: WeibullArrivals(1.0, value),
        lambda value: BenchServe(request_rate=value),
        lambda value: BenchServe(burstiness=value),
    ],
)
def test_rates_and_shapes_are_above_0(make: Callable[[float], object], value: float) -> None:
    with pytest.raises(ValueError, match=rf"must be a number above 0( or infinite)?, but got {value}"):
        make(value)


def test_other_nonsense_is_refused() -> None:
    for make in (
        lambda: PoissonArrivals(math.inf),
        lambda: WeibullArrivals(1.0, math.inf),
        lambda: GammaArrivals(math.inf, 1.0),
    ):
        with pytest.raises(ValueError, match="must be a number above 0, but got inf"):
            make()
    with pytest.raises(ValueError, match="num_users must be at least 1, but got 0"):
        ClosedLoop(0)
    with pytest.raises(ValueError, match="max_concurrency must be at least 1, or None for no bound, but got 0"):
        BenchServe(max_concurrency=0)
    with pytest.raises(ValueError, match="gap_cv must be a number of at least 0, but got -1"):
        GammaArrivals.with_cv(1.0, -1.0)

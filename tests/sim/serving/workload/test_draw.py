"""Arrivals and lengths are drawn from streams of their own, and windows bring the requests that their rates promise."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim.serving.workload.arrivals import BenchServe, ClosedLoop, GammaArrivals, PoissonArrivals
from sim.serving.workload.draw import draw_windows, draw_workload
from sim.serving.workload.lengths import ConstantLengths, EmpiricalLengths, LognormalLengths
from traces.importers.traffic.catalog import read_lengths, read_windows
from traces.importers.traffic.servegen import ArrivalWindows, GapFamily
from traces.workload import Workload

TRACES = Path(__file__).parents[4] / ".." / "shared" / "data" / "traces"
FIXED = ConstantLengths(prompt_tokens=10, output_tokens=5)
SPREAD = LognormalLengths(mean_prompt_tokens=100, mean_output_tokens=50)


def drawn(arrivals: object = PoissonArrivals(2.0), lengths: object = SPREAD, num: int = 50, seed: int = 0) -> Workload:
    return draw_workload(arrivals, lengths, num_requests=num, rng=np.random.default_rng(seed))  # type: ignore[arg-type]


def client(*windows: tuple[float, GapFamily | None, float], window_s: float = 600.0) -> ArrivalWindows:
    """(rate, family, shape) of each window."""
    rates, families, shapes = zip(*windows, strict=True)
    return ArrivalWindows(
        start_s=window_s * np.arange(len(windows)),
        window_s=window_s,
        arrivals_per_s=np.array(rates),
        gap_cv=np.zeros(len(windows)),
        family=tuple(families),
        shape=np.array(shapes),
        scale_s=np.zeros(len(windows)),
        source="by hand",
    )


def test_the_same_generator_gives_the_same_workload_and_another_seed_another() -> None:
    assert drawn().arrival_s.tolist() == drawn().arrival_s.tolist()
    assert drawn().prompt_tokens.tolist() == drawn().prompt_tokens.tolist()
    assert drawn().arrival_s.tolist() != drawn(seed=1).arrival_s.tolist()


def test_changing_one_law_leaves_the_others_draws() -> None:
    base = drawn()
    other_arrivals = drawn(arrivals=GammaArrivals(9.0, 0.3))
    assert other_arrivals.prompt_tokens.tolist() == base.prompt_tokens.tolist()
    assert other_arrivals.output_tokens.tolist() == base.output_tokens.tolist()
    for lengths in (FIXED, EmpiricalLengths(base.lengths)):
        assert drawn(lengths=lengths).arrival_s.tolist() == base.arrival_s.tolist()
    other_prompts = drawn(lengths=LognormalLengths(mean_prompt_tokens=7, mean_output_tokens=50, prompt_cv=0))
    assert other_prompts.output_tokens.tolist() == base.output_tokens.tolist()
    assert other_prompts.prompt_tokens.tolist() != base.prompt_tokens.tolist()


def test_fewer_requests_are_the_first_of_more() -> None:
    few, many = drawn(num=20), drawn(num=50)
    assert few.arrival_s.tolist() == many.arrival_s[:20].tolist()
    assert few.output_tokens.tolist() == many.output_tokens[:20].tolist()


def test_bounds_come_from_the_arrivals_and_the_source_names_both_laws() -> None:
    assert drawn(arrivals=ClosedLoop(4)).max_concurrency == 4
    assert drawn(arrivals=BenchServe(request_rate=3.0, max_concurrency=8)).max_concurrency == 8
    assert drawn().max_concurrency is None
    assert drawn(lengths=FIXED).source == (
        "50 requests, PoissonArrivals(arrivals_per_s=2.0), ConstantLengths(prompt_tokens=10, output_tokens=5)"
    )
    with pytest.raises(ValueError, match="num_requests must be at least 1, but got 0"):
        drawn(num=0)


def test_a_finite_run_ends_when_asked() -> None:
    run = drawn(arrivals=BenchServe(request_rate=16.0, max_concurrency=16), num=80)
    assert run.arrival_s[-1] == 5.0
    assert run.arrivals_per_s == 16.0


def test_a_million_requests_are_three_plain_arrays() -> None:
    made = drawn(num=1_000_000)
    assert sum(array.nbytes for array in (made.arrival_s, made.prompt_tokens, made.output_tokens)) == 24_000_000


@pytest.mark.parametrize(
    ("family", "shape"),
    [(GapFamily.GAMMA, 0.06), (GapFamily.GAMMA, 4.0), (GapFamily.WEIBULL, 0.4), (GapFamily.WEIBULL, 3.0)],
)
def test_a_window_brings_rate_times_duration_requests_evenly(family: GapFamily, shape: float) -> None:
    rate, window_s, num = 0.1, 100.0, 6000
    one = client(*[(rate, family, shape)] * num, window_s=window_s)
    workload = draw_windows([one], FIXED, rng=np.random.default_rng(2))
    quarter = np.floor(workload.arrival_s / (window_s / 4)).astype(int)
    counts = np.bincount(quarter, minlength=4 * num).reshape(num, 4)
    for tokens, expected in (
        (counts.sum(axis=1), rate * window_s),
        *((part, rate * window_s / 4) for part in counts.T),
    ):
        stderr = tokens.std() / math.sqrt(num)
        error = tokens.mean() - expected
        assert abs(error) <= 4 * stderr, f"{error=:.3f} is {error / stderr:.1f} standard errors off"


def test_gaps_within_a_window_follow_its_law() -> None:
    workload = draw_windows(
        [client((50.0, GapFamily.GAMMA, 0.25), window_s=4000.0)], FIXED, rng=np.random.default_rng(0)
    )
    gaps = np.diff(workload.arrival_s)
    assert gaps.mean() == pytest.approx(1 / 50, abs=4 * gaps.std() / math.sqrt(len(gaps)))
    squares = gaps**2
    assert squares.mean() == pytest.approx(5 / 50**2, abs=4 * squares.std() / math.sqrt(len(gaps)))


def test_windows_without_requests_are_empty_and_clients_are_merged_in_order() -> None:
    quiet = client((0.0, None, 0.0), (5.0, GapFamily.GAMMA, 1.0), (0.0, None, 0.0))
    busy = client(*[(1.0, GapFamily.WEIBULL, 1.0)] * 3)
    alone = draw_windows([quiet], FIXED, rng=np.random.default_rng(0))
    assert ((alone.arrival_s >= 600) & (alone.arrival_s < 1200)).all()
    both = draw_windows([quiet, busy], FIXED, rng=np.random.default_rng(0))
    assert set(alone.arrival_s.tolist()) <= set(both.arrival_s.tolist())  # a client more leaves the others'
    assert all(earlier <= later for earlier, later in pairwise(both.arrival_s.tolist()))
    assert both.source.startswith("by hand; by hand; from 0 s to inf s; ConstantLengths")


def test_a_part_of_the_time_has_the_requests_of_the_whole() -> None:
    clients = [client(*[(0.5, GapFamily.GAMMA, 0.2)] * 5), client(*[(0.5, GapFamily.WEIBULL, 0.7)] * 5)]
    whole = draw_windows(clients, FIXED, rng=np.random.default_rng(4))
    for from_s, to_s in pairwise(range(100, 3000, 90)):
        part = draw_windows(clients, FIXED, from_s=from_s, to_s=to_s, rng=np.random.default_rng(4))
        assert part.arrival_s.tolist() == whole.sliced(from_s, to_s).arrival_s.tolist()


def test_no_clients_no_time_and_no_requests_are_refused() -> None:
    quiet = client((0.0, None, 0.0))
    for clients, bounds in (
        ([], (0.0, 1.0)),
        ([quiet], (1.0, 1.0)),
        ([quiet], (-1.0, 1.0)),
        ([quiet], (math.nan, 1.0)),
    ):
        with pytest.raises(ValueError, match="there must be at least one client, and 0 <= from_s < to_s"):
            draw_windows(clients, FIXED, from_s=bounds[0], to_s=bounds[1], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no request arrives from 0.0 s to before inf s"):
        draw_windows([quiet], FIXED, rng=np.random.default_rng(0))


@pytest.mark.skipif(not TRACES.exists(), reason="the recorded traffic is not beside this checkout")
def test_two_weeks_of_real_clients_have_their_requests_and_recorded_lengths() -> None:
    clients = [read_windows(TRACES / f"servegen_m_large_chunk-{chunk}-trace.csv.gz") for chunk in (0, 1, 10)]
    lengths = read_lengths(TRACES / "vidur_arxiv_summarization.csv.gz")
    expected = sum(float((each.arrivals_per_s * each.window_s).sum()) for each in clients)
    counts = np.array(
        [
            draw_windows(clients, EmpiricalLengths(lengths), rng=np.random.default_rng(seed)).num_requests
            for seed in range(4)
        ]
    )
    assert counts.mean() == pytest.approx(expected, rel=0.05)

"""Metrics of requests under load, by hand and by statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from traces.metrics.serving import Objectives, RequestTimes, is_settled, summarise_requests, warm_up_length


def times_of(*rows: tuple[float, float, float, int]) -> RequestTimes:
    """From (sent, first, last, tokens)."""
    sent, first, last, tokens = (np.array(column) for column in zip(*rows, strict=True))
    return RequestTimes(sent_s=sent, first_s=first, last_s=last, num_output=tokens)


TIMES = times_of((0.0, 1.0, 5.0, 5), (1.0, 1.5, 1.5, 1), (2.0, 4.0, 10.0, 4), (3.0, 3.5, math.nan, 2))


def test_times_by_hand() -> None:
    assert TIMES.ttft_s.tolist() == [1.0, 0.5, 2.0, 0.5]
    np.testing.assert_array_equal(TIMES.tpot_s, [1.0, np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(TIMES.e2el_s, [5.0, 0.5, 8.0, np.nan])


@pytest.mark.parametrize(
    ("objectives", "met"),
    [
        (Objectives(), [True, True, True, False]),
        (Objectives(ttft_s=1.0), [True, True, False, False]),
        (Objectives(tpot_s=1.5), [True, True, False, False]),  # a request of one token has no TPOT to miss
        (Objectives(e2el_s=1.0), [False, True, False, False]),
        (Objectives(ttft_s=2.0, tpot_s=2.0, e2el_s=8.0), [True, True, True, False]),
    ],
)
def test_a_request_is_good_if_it_meets_everything_and_is_finished(objectives: Objectives, met: list[bool]) -> None:
    assert TIMES.meets(objectives).tolist() == met


def test_a_summary_by_hand() -> None:
    summary = summarise_requests(TIMES, Objectives(ttft_s=1.0), drop_warm_up=False)
    assert summary.num_requests == 4
    assert summary.duration_s == 10.0
    assert summary.requests_per_s == 0.3
    assert summary.output_tokens_per_s == 1.0
    assert summary.attainment == 0.5
    assert summary.goodput_per_s == pytest.approx(0.15)
    assert summary.p50_ttft_s == 0.75
    assert summary.mean_tpot_s == 1.5
    assert not summary.is_settled  # one was never finished
    with pytest.raises(ValueError, match="no request was finished"):
        summarise_requests(times_of((0.0, math.nan, math.nan, 1)), Objectives())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itl:3", "unknown name 'itl'; known are ttft, tpot and e2el"),
        ("ttft:1 ttft:2", "ttft is given twice"),
        ("ttft:fast", "'fast' is not a number of milliseconds"),
        ("ttft:", "'' is not a number"),
        ("tpot:0", "tpot must be more than 0 milliseconds, but got 0"),
        ("tpot:-3", "more than 0"),
        ("tpot:nan", "more than 0"),
        ("tpot:inf", "more than 0"),
    ],
)
def test_nonsense_objectives_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objectives.parse([text])


def test_objectives_are_read_as_they_are_written() -> None:
    objectives = Objectives.parse(["ttft:500 tpot:20", "e2el:3000"])
    assert objectives == Objectives(ttft_s=0.5, tpot_s=0.02, e2el_s=3.0)
    assert Objectives.parse([objectives.label()]) == objectives


def test_warm_up_is_found_where_it_is_and_not_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    steady = rng.exponential(1.0, 2000)
    rising = steady * np.where(np.arange(2000) < 200, 0.1, 1.0)
    assert 150 <= warm_up_length(rising) <= 400
    assert warm_up_length(steady) <= 1000
    assert warm_up_length(np.ones(7)) == 0


def test_a_growing_queue_never_settles_and_noise_does() -> None:
    rng = np.random.default_rng(1)
    false_alarms = sum(not is_settled(rng.exponential(1.0, 600)) for _ in range(500))
    assert false_alarms <= 3
    assert not is_settled(1.0 + 0.01 * np.arange(600) + rng.exponential(1.0, 600))
    assert is_settled(10.0 + 0.001 * np.arange(600))  # rises, but by less than a half
    assert not is_settled(np.array([1.0] * 50 + [np.inf]))
    assert is_settled(np.ones(3))

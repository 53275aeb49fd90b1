"""A claim about speed is earned, uncertainty is taken in, and measuring ends when enough is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from analysis.check.claims import reasons_against
from analysis.check.precision import FEWEST_BLOCKS, MIN_BLOCKS, Effort, Watch, parse_precision
from analysis.check.uncertainty import widened
from analysis.check.validation import PolicyCheck
from tests.analysis.check.test_reports import CHECK
from tests.traces.metrics.made_up_machine import PATHS, made_up_run
from traces.metrics.machine_speed import MachineSpeed, machine_speed_of
from traces.metrics.speeds import same_policy_difference


def _reasons(
    share: float = 0.0, num_unclean: int = 0, unexplained: float = 0.0, difference: float | None = 0.0, doubt: str = ""
) -> list[str]:
    return reasons_against(
        {"mean_other_share": share},
        num_unclean=num_unclean,
        num_requests=100,
        machine=MachineSpeed(unexplained=unexplained),
        same_policy_difference=difference,
        latency_doubt=doubt,
    )


def test_each_reason_against_a_claim_is_named_alone() -> None:
    assert _reasons() == _reasons(difference=None) == _reasons(0.09, 9, 0.09, 0.029) == []
    for reasons, words in (
        (_reasons(share=0.11), "using the cores"),
        (_reasons(num_unclean=11), "11 of 100 requests"),
        (_reasons(unexplained=0.12), "differ by 12%"),
        (_reasons(difference=0.031), "from itself by 3.1%"),
        (_reasons(doubt="fitted to simulated times"), "simulated times"),
    ):
        (reason,) = reasons
        assert words in reason


def test_one_policy_measured_twice_differs_by_what_the_machine_does() -> None:
    requests, rounds = made_up_run(PATHS["waves"], num_blocks=30)
    adjusted = machine_speed_of(requests, rounds).adjusted(rounds)
    found = same_policy_difference(requests, adjusted)
    assert found is not None
    assert found < 0.02
    slower = rounds.assign(end_s=rounds.end_s)
    second = requests.loc[(requests.policy == "autoregressive") & (requests.repeat == 1), "request_id"]
    spans = rounds[rounds.request_id.isin(second)]
    # The second of the two takes a tenth longer: its last round ends later by a tenth of the request.
    last = spans.groupby("request_id").tail(1).index
    totals = spans.groupby("request_id").end_s.max() - spans.groupby("request_id").start_s.min()
    slower.loc[last, "end_s"] += 0.1 * totals.to_numpy()
    still = same_policy_difference(*made_up_run(lambda time_s: 1.0, num_blocks=30))
    assert still is not None
    assert still < 0.01
    raw, moved = same_policy_difference(requests, rounds), same_policy_difference(requests, slower)
    assert raw is not None
    assert moved is not None
    assert abs(moved - raw) > 0.05
    assert same_policy_difference(requests, rounds, policy="pearl") is None


def test_an_interval_takes_in_another_error() -> None:
    low, high = widened(1.5, (1.4, 1.6), 0.05)
    assert low < 1.4
    assert high > 1.6
    assert widened(1.5, (1.5, 1.5), 0.05) == pytest.approx((1.5 / 1.103, 1.5 * 1.103), rel=1e-3)


@pytest.mark.parametrize("is_above", [True, False])
def test_a_prediction_is_covered_within_both_intervals_together(is_above: bool) -> None:
    """Half-widths of 3% and 4% make 5% together; overlapping takes 7%."""

    def check(distance: float) -> PolicyCheck:
        predicted = math.exp(distance if is_above else -distance)
        return replace(
            CHECK,
            predicted_speedup=predicted,
            predicted_speedup_interval=(predicted * math.exp(-0.03), predicted * math.exp(0.03)),
            adjusted_speedup=1.0,
            adjusted_speedup_interval=(math.exp(-0.04), math.exp(0.04)),
        )

    assert check(0.049).is_covered is True
    assert check(0.051).is_covered is False
    assert CHECK.is_covered is None


def test_measuring_ends_when_the_speedups_are_known_or_the_time_is_over() -> None:
    clock = iter(range(1000))
    watch = Watch(Effort(max_s=10.0), now=lambda: float(next(clock)))
    asked = [watch(block, lambda: pytest.fail("no table is needed")) for block in range(1, 40)]
    assert asked.index(True) == FEWEST_BLOCKS - 1 + 9  # the clock, which ticks when it is read, has gone from 0 to 10

    requests, rounds = made_up_run(PATHS["waves"], num_blocks=40)

    def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
        return requests, rounds

    def stopped(precision: float) -> list[bool]:
        watch = Watch(Effort(precision=precision), now=lambda: 0.0)
        return [watch(block, tables) for block in range(1, 30)]

    hurried = Watch(Effort(max_s=1e-9), now=iter(range(1000)).__next__)
    assert [hurried(block, tables) for block in range(1, 9)].index(True) == FEWEST_BLOCKS - 1

    assert stopped(0.2).index(True) == MIN_BLOCKS - 1
    assert not any(stopped(1e-5))


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("0.05", 0.05), (" 12.5% ", 0.125)])
def test_a_precision_is_a_percentage_or_a_fraction(text: str, value: float) -> None:
    assert parse_precision(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "3", "0", "-1%", "nan", "three"])
def test_another_precision_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--precision must"):
        parse_precision(text)

"""The law of a forward over a batch, and acceptance by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts, read_step_costs

COST = ForwardCost(
    floor_s=0.034,
    token_s=1e-4,
    sharpness=3.0,
    context_s=1e-7,
    request_s=5e-6,
    uncaptured_s=2e-3,
    ramp_s=3e-3,
    max_graph_tokens=512,
)


@given(st.integers(0, 9000), st.integers(0, 10**6), st.integers(0, 512))
def test_one_step_and_an_array_of_steps_cost_the_same(num_tokens: int, context: int, requests: int) -> None:
    alone = COST.seconds(num_tokens, context, requests)
    together = COST.seconds_array([num_tokens, 7], [context, 9], [requests, 1])
    assert together == pytest.approx([alone, COST.seconds(7, 9, 1)], rel=1e-12)


def test_few_tokens_cost_the_floor_and_many_cost_the_slope() -> None:
    assert COST.seconds(1, 0, 0) == pytest.approx(COST.floor_s, rel=0.01)
    more = COST.seconds(80_000, 0, 0) - COST.seconds(70_000, 0, 0)
    assert more == pytest.approx(10_000 * COST.token_s, rel=1e-4)


def test_a_corner_lies_between_the_maximum_and_the_sum_of_its_roofs() -> None:
    tokens = np.arange(1, 2000, 7)
    seconds = ForwardCost(floor_s=0.03, token_s=1e-4, sharpness=2.0).seconds_array(tokens, 0, 0)
    assert (seconds >= np.maximum(0.03, 1e-4 * tokens)).all()
    assert (seconds <= 0.03 + 1e-4 * tokens).all()
    assert (np.diff(seconds) > 0).all()


def test_the_floor_rises_with_the_first_tokens_and_no_further() -> None:
    cost = ForwardCost(floor_s=0.01, ramp_s=0.02, ramp_tokens=16.0)
    assert cost.seconds(16, 0, 16) == pytest.approx(0.01 + 0.02 * (1 - np.exp(-1)))
    assert cost.seconds(400, 0, 400) == pytest.approx(0.03, rel=1e-9)
    assert cost.seconds_array([16, 400], 0, 0) == pytest.approx([cost.seconds(16, 0, 0), cost.seconds(400, 0, 0)])


def test_contexts_add_and_the_largest_graph_is_a_jump() -> None:
    assert COST.seconds(64, 10**5, 64) - COST.seconds(64, 0, 64) == pytest.approx(0.01)
    assert COST.seconds(64, 0, 64) - COST.seconds(64, 0, 0) == pytest.approx(64 * 5e-6)
    assert COST.seconds(513, 0, 1) - COST.seconds(512, 0, 1) > 0.99 * COST.uncaptured_s
    assert COST.seconds(512, 0, 1) - COST.seconds(511, 0, 1) < 0.1 * COST.uncaptured_s


def test_a_forward_without_tokens_takes_no_time() -> None:
    assert COST.seconds(0, 0, 0) == 0.0
    assert COST.seconds_array(0, 0, 0) == 0.0


@pytest.mark.parametrize("name", ["floor_s", "token_s", "context_s", "request_s", "uncaptured_s", "ramp_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_costs_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ForwardCost(**{"floor_s": 0.03, name: value})


def test_a_ramp_over_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="ramp_tokens"):
        ForwardCost(floor_s=0.03, ramp_tokens=0.0)


def test_a_sharpness_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="sharpness"):
        ForwardCost(floor_s=0.03, sharpness=0.5)


def test_step_costs_survive_a_file(tmp_path: Path) -> None:
    costs = StepCosts(target=COST, draft=ForwardCost(floor_s=0.003), host_s=1e-3)
    costs.write(tmp_path / "costs.json")
    assert read_step_costs(tmp_path / "costs.json") == costs


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"target": {"floor_s": -1}}')
    with pytest.raises(ValueError, match="floor_s"):
        read_step_costs(tmp_path / "costs.json")


def test_the_host_counts_with_the_target_and_drafts_are_asked_for_only_where_there_is_one() -> None:
    costs = StepCosts(target=COST, host_s=1e-3)
    assert costs.target_s(1, 2, 3) == pytest.approx(COST.seconds(1, 2, 3) + 1e-3)
    with pytest.raises(ValueError, match="no draft"):
        costs.draft_s(1, 2, 3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_marginal_and_conditional_acceptance_are_two_views_of_one_thing(conditional: list[float]) -> None:
    acceptance = AcceptanceByPosition(tuple(conditional))
    marginal = acceptance.marginal(len(conditional))
    assert AcceptanceByPosition.from_marginal(marginal).marginal(len(conditional)) == pytest.approx(marginal)


def test_beyond_the_measured_positions_the_last_chance_holds() -> None:
    assert AcceptanceByPosition((0.8, 0.5)).marginal(4) == pytest.approx((0.8, 0.4, 0.2, 0.1))
    assert AcceptanceByPosition((0.5,)).mean_acceptance_length(2) == pytest.approx(1.75)


def test_rising_marginal_rates_are_taken_for_conditional_ones() -> None:
    with pytest.raises(ValueError, match="position 1"):
        AcceptanceByPosition.from_marginal([0.7, 0.8])


def test_percent_are_not_chances() -> None:
    with pytest.raises(ValueError, match="percent"):
        AcceptanceByPosition.from_marginal([70.0, 50.0])

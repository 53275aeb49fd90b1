"""Advice from numbers alone: the closed forms at one chance, a chain by position, and what a table of costs adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.plan.advice import (
    ConstantTimes,
    advise_batches,
    advise_one_request,
    best_length,
    overlapped_tokens_per_step,
)
from sim.decoding.closed_forms import pearl_speedup, pearl_tokens_per_step, sps_speedup
from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts

CHANCES = st.floats(0.01, 0.99)


@given(alpha=CHANCES, cost_ratio=st.floats(1.5, 40), positions=st.integers(1, 4))
def test_one_chance_at_all_positions_gives_the_textbook_closed_forms(
    alpha: float, cost_ratio: float, positions: int
) -> None:
    model = ConstantTimes(cost_ratio, 1.0)
    advice = advise_one_request(model, AcceptanceByPosition((alpha,) * positions), max_length=12)
    assert advice[0].speedup == 1
    for row in advice[1:]:
        assert row.speedup == pytest.approx(float(sps_speedup(alpha, row.draft_length, cost_ratio)))
        assert row.overlapped_speedup == pytest.approx(float(pearl_speedup(alpha, row.draft_length, cost_ratio)))
        assert row.is_guess == (row.draft_length > positions)


@pytest.mark.parametrize(("conditional", "length"), [((0.9, 0.5, 0.8), 2), ((0.4, 0.95), 3), ((0.7, 0.6, 0.5, 0.9), 1)])
def test_the_overlapped_chain_by_position_is_what_a_walk_through_it_finds(
    conditional: tuple[float, ...], length: int
) -> None:
    rng = np.random.default_rng(7)
    steps, tokens, place = 40_000, np.empty(40_000), None
    for step in range(steps):
        if place is None:  # a pre-verify: one token, and the draft's guess of it
            tokens[step] = 1
            place = 1 if rng.random() < conditional[0] else None
            continue
        hits = 0
        while hits < length and rng.random() < conditional[min(place + hits, len(conditional) - 1)]:
            hits += 1
        tokens[step] = min(hits + 1, length)
        place = place + length if hits == length else None
    error = tokens.mean() - overlapped_tokens_per_step(conditional, length)
    batches = tokens.reshape(200, -1).mean(axis=1)
    stderr = batches.std(ddof=1) / np.sqrt(len(batches))
    assert abs(error) <= 4 * stderr, f"{error / stderr:.1f} standard errors off"


def test_the_ends_of_acceptance() -> None:
    assert overlapped_tokens_per_step([1.0], 5) == 5
    assert overlapped_tokens_per_step([0.0], 5) == 1
    assert overlapped_tokens_per_step([0.6], 3) == pytest.approx(float(pearl_tokens_per_step(0.6, 3)))
    none = advise_one_request(ConstantTimes(0.02, 0.001), AcceptanceByPosition((0.0,)), max_length=3)
    assert best_length(none).draft_length == 0
    every = advise_one_request(ConstantTimes(0.02, 0.001), AcceptanceByPosition((1.0, 1.0, 1.0)), max_length=9)
    assert best_length(every).draft_length == 3  # what nobody measured is not advised
    assert max(every, key=lambda row: row.speedup).draft_length == 9


def test_a_fuller_batch_wants_shorter_drafts() -> None:
    costs = StepCosts(target=ForwardCost(floor_s=0.03, token_s=2e-4), draft=ForwardCost(floor_s=0.002, token_s=1e-5))
    acceptance = AcceptanceByPosition((0.78, 0.83, 0.77))
    rows = advise_batches(costs, acceptance, (1, 16, 64, 256), max_length=9, context=500)
    lengths = [row.draft_length for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (3, 0)
    assert rows[-1].speedup == 1
    one = advise_one_request(costs, acceptance, max_length=3, context=500)
    assert rows[0].speedup == pytest.approx(best_length(one).speedup, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((0.0, 1.0), "more than 0 ms"), ((float("nan"), 1.0), "more than 0 ms"), ((1.0, -1.0), "at least 0 ms")],
)
def test_times_that_cannot_be_are_refused(arguments: tuple[float, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConstantTimes(*arguments)

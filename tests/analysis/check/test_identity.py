"""Rounds that turn on the last digits of a signal are told from rounds that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from analysis.check.identity import is_within_rounding
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import replay
from traces.schema import RequestTrace, Signal


def test_a_decision_on_a_near_tie_is_within_rounding(make_trace: Callable[..., RequestTrace]) -> None:
    """Confidences stand at the threshold to six digits: a hair to one side they stop drafting, to the other they do not."""
    trace = make_trace(num_tokens=60)
    policy = parse_policy("confidence_stop:threshold=0.5,max_length=4")
    below, above = (
        replace(
            trace,
            signals=tuple(
                Signal(0.5 + shift, 1.0, 1.0) if index == 7 else Signal(0.9, 1.0, 1.0) for index in range(60)
            ),
        )
        for shift in (-2e-6, 2e-6)
    )
    executed = replay(policy, above)
    assert executed != replay(policy, below)
    assert is_within_rounding(executed, policy, below, 2e-5)
    assert not is_within_rounding(executed, policy, below, 1e-8)
    wrong = [round_._replace(num_drafted=round_.num_drafted + (round_.round == 3)) for round_ in executed]
    assert not is_within_rounding(wrong, policy, below, 2e-5)


@pytest.mark.parametrize("label", ["fixed_length:draft_length=3", "pearl:draft_length=4", "adaedl:max_length=3"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_draft_that_takes_the_other_of_two_tokens_is_within_rounding(
    make_trace: Callable[..., RequestTrace], label: str, rank: int
) -> None:
    """At one position the draft's two best tokens are as good as equal, and the target's is one of them."""
    trace, policy = make_trace(num_tokens=60), parse_policy(label)
    position = 12
    signals = tuple(
        Signal(0.5, 0.5, 2e-6) if index == position else signal for index, signal in enumerate(trace.signals)
    )
    as_recorded, as_executed = (
        replace(
            trace,
            ranks=(*trace.ranks[:position], found, *trace.ranks[position + 1 :]),
            signals=signals,
            tails={**trace.tails, position: trace.tails[60]},
        )
        for found in (rank, 1 - rank)
    )
    executed = replay(policy, as_executed)
    assert executed != replay(policy, as_recorded)
    assert is_within_rounding(executed, policy, as_recorded, 2e-5)
    assert not is_within_rounding(executed, policy, as_recorded, 1e-8)


@pytest.mark.parametrize("label", ["fixed_length:draft_length=3", "pearl:draft_length=4", "adaedl:max_length=3"])
def test_rounds_that_are_wrong_are_not_explained(make_trace: Callable[..., RequestTrace], label: str) -> None:
    """Near ties everywhere, also where the draft was right and no other continuation of it is known."""
    trace, policy = make_trace(num_tokens=40), parse_policy(label)
    trace = replace(trace, signals=tuple(signal._replace(margin=2e-6) for signal in trace.signals))
    executed = replay(policy, trace)[:-1]
    assert not is_within_rounding(executed, policy, trace, 2e-5)

"""Executed rounds are the replayed ones, every field, wherever float rounding leaves the policy no choice."""

from __future__ import annotations

from analysis.check.identity import ROUNDING, is_within_rounding
from sim.decoding.policies.base import Policy
from sim.decoding.replay import replay
from traces.schema import RequestTrace, Round


def assert_replayed(executed: list[Round], policy: Policy, trace: RequestTrace) -> None:
    """Signals' last digits depend on the width of the forward that they came from, hence on processor and libraries. Where a
    policy weighs two hedges alike up to these digits, or the draft two tokens, rounds must be those of a trace that differs
    by no more."""
    replayed = replay(policy, trace, executed=executed)
    if executed != replayed and not is_within_rounding(executed, policy, trace, ROUNDING["float32"]):
        assert executed == replayed, policy

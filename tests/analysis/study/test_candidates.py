"""Candidates and the choice among them: what outcome hedging contains never beats it in prediction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from analysis.study.candidates import choose_lookup, choose_policies, family_grids
from sim.decoding.policies.base import Policy
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from traces.schema import RequestTrace, Signal


@pytest.fixture
def traces(make_trace: Callable[..., RequestTrace]) -> list[RequestTrace]:
    return [make_trace(num_tokens=60, seed=seed, acceptance=0.55) for seed in range(6)]


def speed_of(policy: Policy, traces: list[RequestTrace], latency: LatencyModel) -> float:
    return float(sweep([policy], traces, latency).decode_tokens_per_s[0])


@pytest.mark.parametrize("cost_ratio", [1.5, 6.0, 16.0])
def test_outcome_hedging_is_never_predicted_behind_what_it_contains(
    traces: list[RequestTrace], cost_ratio: float
) -> None:
    latency = ConstantLatency(draft_s=1 / cost_ratio, verify_s=1.0)
    chosen = choose_policies(traces, latency, is_small=True)
    ours = speed_of(chosen["outcome_hedging"], traces, latency)
    contained = [policy for policy in chosen.values() if as_outcome_hedging(policy) is not None]
    assert len(contained) >= 6
    for policy in contained:
        assert ours >= speed_of(policy, traces, latency) * (1 - 1e-12)


def test_each_family_gets_the_best_of_its_grid(traces: list[RequestTrace]) -> None:
    latency = ConstantLatency(draft_s=1 / 8, verify_s=1.0)
    grids = family_grids(traces, latency, is_small=True)
    chosen = choose_policies(traces, latency, is_small=True)
    for family in ("fixed_length", "pearl", "saguaro"):
        best = max(speed_of(policy, traces, latency) for policy in grids[family])
        assert speed_of(chosen[family], traces, latency) == pytest.approx(best, rel=1e-12)


def test_no_candidate_looks_deeper_than_the_trace_was_recorded(make_trace: Callable[..., RequestTrace]) -> None:
    shallow = [make_trace(seed=seed, tail_depth=9) for seed in range(3)]
    latency = ConstantLatency(draft_s=1 / 40, verify_s=1.0)  # asks for windows of 40 tokens
    for policies in family_grids(shallow, latency).values():
        assert max(policy.needs.tail_depth for policy in policies) <= 9


def test_the_lookup_that_is_never_right_drafts_as_little_as_it_can(make_trace: Callable[..., RequestTrace]) -> None:
    found, nothing = Signal(1.0, 0.0, 1e4), Signal(0.01, 4.0, 0.1)
    trace = make_trace(num_tokens=40, acceptance=0.0)
    wrong = RequestTrace(
        **{
            **vars(trace),
            "signals": (found,) * 40,
            "tails": {position: (found,) * 16 for position in [*np.flatnonzero(trace.ranks).tolist(), 40]},
        }
    )
    latency = ConstantLatency(draft_s=0.1, verify_s=1.0)
    assert choose_lookup([wrong], latency)["prompt_lookup"] == PromptLookup(1)
    right = RequestTrace(**{**vars(wrong), "ranks": (0,) * 40, "tails": {40: (nothing,) * 16}})
    assert choose_lookup([right], latency)["prompt_lookup"] == PromptLookup(10)

"""Alignments by name: engines' rules and the informed law on recorded requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.study.alignments import aligned_traces
from traces.schema import RequestTrace, TokenChances

MakeTrace = Callable[..., RequestTrace]


def recorded(make_trace: MakeTrace) -> list[RequestTrace]:
    chances = (TokenChances(0.5, 0.25, 0.3, 1), TokenChances(0.2, 0.6, 0.2, 0))
    return [
        replace(make_trace(seed=seed, num_tokens=200, temperature=1.0), chances=chances * 100) for seed in range(10)
    ]


def test_engines_rules_are_alignments(make_trace: MakeTrace) -> None:
    traces = recorded(make_trace)
    ratio, greedy = (aligned_traces(label, traces, seed=1) for label in ("ratio", "point_mass"))
    share = np.mean([rank == 0 for trace in ratio for rank in trace.ranks])
    assert share == pytest.approx((0.5 + 1.0) / 2, abs=0.03)
    assert all(trace.ranks[:2] == (1, 0) and not trace.signals for trace in greedy)
    cold = [replace(trace, temperature=0.0) for trace in traces]
    assert aligned_traces("ratio", cold, seed=1) == cold


def test_the_informed_law_keeps_acceptance_and_tells_it(make_trace: MakeTrace) -> None:
    traces = recorded(make_trace)
    drawn = aligned_traces("informed", traces, seed=1)

    def acceptance(of: list[RequestTrace]) -> float:
        return float(np.mean([rank == 0 for trace in of for rank in trace.ranks]))

    assert acceptance(drawn) == pytest.approx(acceptance(traces), abs=0.05)
    sure = [signal.max_prob for trace in drawn for signal in trace.signals]
    right = [rank == 0 for trace in drawn for rank in trace.ranks]
    assert np.mean(np.array(sure)[right]) > np.mean(np.array(sure)[~np.array(right)]) + 0.1
    assert all(trace.tail_depth == 16 and trace.temperature == 1.0 for trace in drawn)

"""A placement changes times as its processes would: interference, link, cost ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.engine import SimulatedRun, simulate, summarise
from sim.latency.base import Conditions
from sim.latency.constant import ConstantLatency
from sim.latency.placement import AdjustedLatency, Placement, PlacementKind, adjusted, cost_ratio_of
from sim.sweep.sweep import sweep
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference, Pace
from traces.schema import OpShape, RequestTrace

ANYWHERE: dict[str, Any] = {"context_tokens": 50, "drafts": True}
BASE = ConstantLatency(draft_s=0.2, verify_s=1.0, host_s=0.05)


def seconds_of(placement: Placement, traces: list[RequestTrace], latency: ConstantLatency | AdjustedLatency) -> float:
    return float(sweep([Pearl(6)], traces, latency, interference=placement.shared).decode_s.sum())


def test_sharing_costs_between_nothing_and_taking_turns(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(seed=seed) for seed in range(3)]
    apart = float(sweep([Pearl(6)], traces, BASE).decode_s.sum())
    turns = float(sweep([Pearl(6)], traces, BASE, takes_turns=True).decode_s.sum())
    found = [
        seconds_of(Placement(kind=PlacementKind.SHARED_DEVICE, interference=factor), traces, BASE)
        for factor in (1.0, 1.5, 2.0)
    ]
    assert found == pytest.approx([apart, (apart + turns) / 2, turns])


def test_a_link_costs_each_verification_its_way_there_and_back(make_trace: Callable[..., RequestTrace]) -> None:
    placement = Placement(link_latency_s=0.01)
    far = adjusted(BASE, placement, cost_ratio=None, context_tokens=50, drafts=True)
    assert far.mean_s(OpShape("target", "verify", 4, 1, 50)) == pytest.approx(1.02)
    assert far.mean_s(OpShape("draft", "draft", 1, 1, 50)) == pytest.approx(0.2)
    np.testing.assert_allclose(far.mean_array("verify", [1, 4], 1, 50), 1.02)
    narrow = Placement(link_latency_s=0.01, link_bytes_per_s=100.0)
    slow = adjusted(BASE, narrow, cost_ratio=None, context_tokens=50, drafts=True)
    assert slow.mean_s(OpShape("target", "verify", 4, 1, 50)) == pytest.approx(1.02 + 4 * 5 / 100)
    assert adjusted(BASE, placement, cost_ratio=None, context_tokens=50, drafts=Autoregressive().needs.drafts) is BASE


def test_a_cost_ratio_scales_the_draft_alone() -> None:
    assert cost_ratio_of(BASE, 50) == pytest.approx(5.0)
    scaled = adjusted(BASE, Placement(), cost_ratio=20.0, context_tokens=50, drafts=True)
    assert cost_ratio_of(scaled, 50) == pytest.approx(20.0)
    assert scaled.mean_s(OpShape("target", "verify", 1, 1, 50)) == BASE.verify_s
    assert scaled.draw_s(OpShape("draft", "branch", 1, 4, 50), np.random.default_rng(0)) == pytest.approx(0.05)
    np.testing.assert_allclose(scaled.mean_array("look", 1, 1, [0, 50]), 0.05)


class Dear(ConstantLatency):
    """A draft forward costs 0.2, read 0.3, the round's first 0.04 more; beside it a verification goes at two thirds."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart(first_s=0.04, decay=0.5, full_s=0.5)

    @property
    def interference(self) -> Interference:
        return Interference(target=Pace(2 / 3))

    def under(self, conditions: Conditions) -> Dear:
        return replace(self, draft_s=0.3 if conditions.reads_signals else 0.2)


def test_signals_interference_and_cold_starts_are_priced_in_every_placement() -> None:
    far = adjusted(Dear(draft_s=0.2, verify_s=1.0), Placement(link_latency_s=0.01), cost_ratio=2.5, **ANYWHERE)
    assert far.cold_start == ColdStart(first_s=0.08, decay=0.5, full_s=0.5)
    met = far.under(Conditions(drafts=True, reads_signals=True))
    assert met.cold_start == far.cold_start
    assert met.interference == Interference(target=Pace(2 / 3))
    assert met.mean_s(OpShape("draft", "draft", 1, 1, 50)) == pytest.approx(0.6)
    assert met.mean_s(OpShape("target", "verify", 4, 1, 50)) == pytest.approx(1.02)


def verify_times(run: SimulatedRun) -> np.ndarray:
    return np.array([op.end_s - op.start_s for op in run.ops if op.kind == "verify"])


def test_models_that_take_turns_do_not_slow_each_other_down(make_trace: Callable[..., RequestTrace]) -> None:
    traces, latency = [make_trace(seed=seed) for seed in range(3)], Dear(draft_s=0.2, verify_s=1.0)
    run = simulate(Pearl(8), traces, latency, takes_turns=True)
    assert verify_times(run) == pytest.approx(1.0)
    swept = sweep([Pearl(8)], traces, latency, takes_turns=True)
    assert swept.decode_s.sum() == pytest.approx(summarise(run).decode_s)
    apart = simulate(Pearl(8), traces, latency)
    ahead = {round_.round: times.draft_s for round_, times in apart.rounds if round_.num_branches}
    assert verify_times(apart).max() == pytest.approx(1.5)  # where the draft works all the time
    assert max(ahead.values()) > 1.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"interference": 0.5}, "interference must be at least 1"),
        ({"link_latency_s": -1.0}, "link_latency_s must be at least 0"),
        ({"kind": PlacementKind.SHARED_DEVICE, "link_latency_s": 0.1}, "has no link"),
        ({"link_bytes_per_s": 0.0}, "link_bytes_per_s must be positive"),
    ],
)
def test_impossible_placements_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Placement(**settings)  # type: ignore[arg-type]

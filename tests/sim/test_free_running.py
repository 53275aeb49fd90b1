"""A free-running draft: it goes on until the verdict comes, its rounds replay exactly, and a fixed draft is a case of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.replay import replay
from sim.engine import simulate, summarise
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from traces.schema import OpKind, OpShape, RequestTrace

FREE: list[Policy] = [
    Pearl(2, 8),
    SpecBranch(2, uses_hrad=False, num_further=6),
    OutcomeHedging(draft_length=1, max_branches=4, num_further=6),
]


@dataclass(frozen=True)
class Varying(ConstantLatency):
    """A target whose forwards take lognormal times with this spread around their mean."""

    spread: float = 0.6

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        mean_s = self.mean_s(op)
        if op.kind != OpKind.VERIFY:
            return mean_s
        return mean_s * float(np.exp(rng.normal(-(self.spread**2) / 2, self.spread)))


def speed(policy: Policy, traces: list[RequestTrace], latency: LatencyModel, *, is_drawn: bool) -> float:
    rng = np.random.default_rng(0) if is_drawn else None
    return summarise(simulate(policy, traces, latency, rng=rng, record_ops=False)).decode_tokens_per_s


@pytest.mark.parametrize("policy", FREE, ids=label_of)
@pytest.mark.parametrize("takes_turns", [False, True])
def test_rounds_of_a_free_running_draft_replay_exactly(
    policy: Policy, takes_turns: bool, make_trace: Callable[..., RequestTrace]
) -> None:
    trace = make_trace(num_tokens=80)
    latency = Varying(draft_s=0.2, verify_s=1.0)
    run = simulate(policy, [trace], latency, rng=np.random.default_rng(1), takes_turns=takes_turns)
    rounds = [round_ for round_, _ in run.rounds]
    assert replay(policy, trace, executed=rounds) == rounds
    steps = {round_.num_branch_steps for round_ in rounds[:-10]}
    assert (len(steps) == 1) == takes_turns  # who takes turns does what has to be done, and no more
    with pytest.raises(ValueError, match="depend on times"):
        replay(policy, trace)


@pytest.mark.parametrize("policy", FREE, ids=label_of)
def test_a_sweep_has_the_engines_rounds_and_times(policy: Policy, make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(num_tokens=40, seed=seed) for seed in range(2)]
    latency = ConstantLatency(draft_s=0.15, verify_s=1.0, host_s=0.01)
    swept = sweep([Pearl(3), policy], traces, latency)
    whole = summarise(simulate(policy, traces, latency))
    assert swept.counts["num_rounds"][1].sum() == whole.num_rounds
    assert swept.decode_s[1].sum() == pytest.approx(whole.decode_s, rel=1e-9)


def test_a_step_begins_as_long_as_the_verdict_has_not_come(make_trace: Callable[..., RequestTrace]) -> None:
    trace = make_trace(num_tokens=60, acceptance=1.0)
    for ratio, steps in ((4.0, 3), (4.5, 4), (1.5, 1), (30.0, 8)):  # the look is the first of the forwards beside it
        run = simulate(Pearl(1, 8), [trace], ConstantLatency(draft_s=1 / ratio, verify_s=1.0))
        assert {round_.num_branch_steps for round_, _ in run.rounds[:3]} == {steps}, ratio


@pytest.mark.parametrize("cost_ratio", [2.5, 4.0, 6.5, 11.0])
def test_at_constant_speed_it_is_as_fast_as_any_fixed_draft(cost_ratio: float) -> None:
    rng = np.random.default_rng(3)
    traces = [Geometric(alpha=0.75).sample(96, request_id, rng) for request_id in range(3)]
    latency = ConstantLatency(draft_s=1 / cost_ratio, verify_s=1.0)
    fixed = {length: speed(Pearl(length), traces, latency, is_drawn=False) for length in range(1, int(cost_ratio) + 4)}
    best = max(fixed, key=lambda length: fixed[length])
    free = speed(Pearl(1, best - 1), traces, latency, is_drawn=False)
    assert free >= fixed[best] * (1 - 1e-9)


def test_where_the_targets_time_varies_it_is_faster_than_every_fixed_draft() -> None:
    rng = np.random.default_rng(3)
    traces = [Geometric(alpha=0.85).sample(150, request_id, rng) for request_id in range(6)]
    latency = Varying(draft_s=1 / 6, verify_s=1.0)
    fixed = max(speed(Pearl(length), traces, latency, is_drawn=True) for length in range(2, 10))
    free = max(speed(Pearl(1, most), traces, latency, is_drawn=True) for most in (6, 9, 16))
    assert free >= 1.05 * fixed, f"{free / fixed:.3f}"


def test_a_label_names_the_setting_only_where_it_is_used() -> None:
    assert label_of(Pearl(6)) == "pearl:draft_length=6"
    assert parse_policy(label_of(Pearl(6, 3))) == Pearl(6, 3)
    assert as_outcome_hedging(Pearl(6, 3)).num_further == 3  # type: ignore[union-attr]  # PEARL is contained

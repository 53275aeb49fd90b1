"""A replica with one request at a time is the single-request engine, for every method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import POLICIES, parse_policy
from sim.engine import simulate
from sim.latency.base import Conditions, LatencyModel
from sim.latency.constant import ConstantLatency
from sim.serving.cluster import ServedRun, serve
from sim.serving.costs import LatencyCosts
from sim.serving.rounds.machines import MachineRounds
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.settings import SINGLE_STREAM, Placement
from traces.fits.cold_start import ColdStart
from traces.schema import OpKind, OpShape, RequestTrace
from traces.workload import Workload

# These draft token by token, each with an event of its own: the same seconds are added in another order.
ONE_BY_ONE = ("confidence_stop", "adaedl", "product_rule", "prompt_lookup", "specbranch", "outcome_hedging")
ULP = float(np.finfo(float).eps)


class Uneven(ConstantLatency):
    """Every feature of a shape counts, with numbers that no sum of floats makes exact; the draft starts cold."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart(first_s=0.137, decay=0.4, full_s=3.3)

    def mean_s(self, op: OpShape) -> float:
        return float(self.mean_array(op.kind, op.num_tokens, op.num_branches, op.context_tokens, actor=op.actor))

    def mean_array(self, kind, num_tokens, num_branches, context_tokens, *, actor=None):  # type: ignore[no-untyped-def]
        base = {OpKind.VERIFY: 1.1, OpKind.PREFILL: 0.7, OpKind.HOST: 0.03}.get(kind, 0.1)
        tokens, rows, context = map(np.asarray, (num_tokens, num_branches, context_tokens))
        return base + 0.013 * tokens + 0.0017 * rows + 0.00031 * context


def served_alone(
    policy: Policy, traces: list[RequestTrace], latency: LatencyModel, *, takes_turns: bool, planned: bool = True
) -> ServedRun:
    count = len(traces)
    workload = Workload(
        arrival_s=np.zeros(count),
        prompt_tokens=np.array([trace.num_prompt_tokens for trace in traces]),
        output_tokens=np.array([trace.num_tokens for trace in traces]),
        max_concurrency=1,
    )
    latency = latency.under(Conditions.of(policy))
    return serve(
        workload,
        SINGLE_STREAM,
        lambda: LatencyCosts(latency, takes_turns=takes_turns),
        lambda: (
            PlannedRounds(Plan([policy], traces), takes_traces_lengths=True)
            if planned
            else MachineRounds([policy], traces, max_pending=32, takes_traces_lengths=True)
        ),
        placement=Placement.IN_TURN if takes_turns else Placement.OWN_DEVICE,
    )


@pytest.mark.parametrize("planned", [True, False], ids=["planned", "machines"])
@pytest.mark.parametrize("takes_turns", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_of_one_is_the_engine(
    name: str, takes_turns: bool, planned: bool, make_trace: Callable[..., RequestTrace]
) -> None:
    policy = parse_policy(name)
    traces = [make_trace(num_tokens=40 + 7 * seed, seed=seed, tail_depth=40, with_classes=True) for seed in range(5)]
    latency = Uneven(draft_s=1, verify_s=1)
    if name == "autoregressive" and takes_turns:
        pytest.skip("the engine lets an unused draft read the prompt")
    engine = simulate(policy, traces, latency, takes_turns=takes_turns, record_ops=False)
    run = served_alone(policy, traces, latency, takes_turns=takes_turns, planned=planned)
    for measured, expected in (
        (run.first_s, [request.first_token_s for request in engine.requests]),
        (run.last_s, [request.finish_s for request in engine.requests]),
    ):
        if name in ONE_BY_ONE:
            np.testing.assert_allclose(measured, expected, rtol=8 * ULP)
        else:
            np.testing.assert_array_equal(measured, expected)

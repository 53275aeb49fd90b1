"""What the parts of a step cost: sums against a count request by request, and a roofline in the form of a server's costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.model_shapes import named_shape
from sim.latency.constant import ConstantLatency
from sim.latency.roofline import Hardware, RooflineLatency
from sim.serving.batch import Chunk, StepPlan
from sim.serving.costs import LatencyCosts, SummedCosts
from sim.serving.roofline import kv_tokens_of, step_costs_of
from sim.serving.rounds.base import Details, Rounds
from traces.schema import OpKind


class Counting:
    """Every argument counts, each with a weight of its own, so that sums can be told apart."""

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 1e9 + num_tokens * 1e6 + context_tokens + num_requests * 1e-3

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 1e8 + num_tokens * 1e5 + context_tokens + num_requests * 1e-3


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 7))
def test_forwards_of_a_batch_are_those_of_its_requests_side_by_side(seed: int, running: int) -> None:
    rng = np.random.default_rng(seed)
    details = Details(*rng.integers(0, 4, (7, running)))
    details = details._replace(
        first_tokens=rng.integers(1, 3, running),
        num_branches=rng.integers(1, 4, running),
        num_branch_steps=np.where(details.look_lag > 0, details.num_branch_steps, 0),
    )
    contexts = rng.integers(10, 50, running)
    rounds = Rounds(contexts * 0, contexts * 0, int(details.num_pending.sum()), details=details)
    plan = StepPlan(contexts, int(contexts.sum()), rounds, [Chunk(9, 30, 5, True)])
    costs, model = SummedCosts(Counting()), Counting()
    rows = [tuple(int(column[index]) for column in (contexts, *details)) for index in range(running)]

    serial_s = 0.0
    for step in range(int(details.num_serial_forwards.max())):
        parts = [
            (first if step == 0 else 1, context + offset + step)
            for context, forwards, first, offset, *_ in rows
            if forwards > step
        ]
        serial_s += model.draft_s(sum(part[0] for part in parts), sum(part[1] for part in parts), len(parts))
    assert costs.serial_s(plan) == pytest.approx(serial_s, rel=1e-12)

    tokens = sum(pending + 1 for _, _, _, _, pending, *_ in rows) + 30
    assert costs.target_s(plan) == model.target_s(tokens, int(contexts.sum()) + 5, running + 1)

    looks = [(lag, context + pending) for context, _, _, _, pending, lag, *_ in rows if lag]
    look_s = model.draft_s(sum(lag for lag, _ in looks), sum(at for _, at in looks), len(looks)) if looks else 0.0
    branches_s = 0.0
    for step in range(int(details.num_branch_steps.max())):
        parts = [(rows_, context + pending) for context, _, _, _, pending, _, rows_, steps in rows if steps > step]
        count = sum(rows_ for rows_, _ in parts)
        branches_s += model.draft_s(count, sum(rows_ * at for rows_, at in parts), count)
    prefill_s, measured_look_s, measured_branches_s = costs.ahead_s(plan, plan.chunks)
    assert prefill_s == model.draft_s(30, 5, 1)
    assert measured_look_s == look_s
    assert measured_branches_s == pytest.approx(branches_s, rel=1e-12)


def test_a_draft_that_only_keeps_its_cache_runs_once() -> None:
    contexts = np.array([10, 20])
    ones = np.ones(2, dtype=np.int64)
    costs, model = SummedCosts(Counting()), Counting()

    def serial_s(**fields: object) -> float:
        return costs.serial_s(StepPlan(contexts, 30, Rounds(ones, ones, 0, 0, **fields), joined_tokens=4))  # type: ignore[arg-type]

    assert serial_s() == 0.0
    assert serial_s(keeps_draft=True) == model.draft_s(6, 30, 2)
    behind = StepPlan(contexts, 30, Rounds(ones, ones, 4, 2, draft_behind=5))
    assert costs.serial_s(behind) == model.draft_s(7, 30, 2) + model.draft_s(2, 32, 2)


def test_batches_of_a_single_requests_latency_add_their_contexts() -> None:
    class PerContext(ConstantLatency):
        def mean_array(self, kind, num_tokens, num_branches, context_tokens, *, actor=None):  # type: ignore[no-untyped-def]
            return (
                1.0 + 0.1 * np.asarray(num_tokens) + 0.01 * np.asarray(context_tokens) + 0.0 * np.asarray(num_branches)
            )

    contexts = np.array([10, 30, 50])
    ones = np.ones(3, dtype=np.int64)
    plan = StepPlan(contexts, 90, Rounds(ones, ones, 6, 2))
    costs = LatencyCosts(PerContext(draft_s=1, verify_s=1))
    assert costs.target_s(plan) == pytest.approx(1.0 + 0.1 * 9 + 0.01 * 90)
    assert costs.serial_s(plan) == pytest.approx(2 * (1.0 + 0.1 * 3) + 0.01 * (90 + 93))


def test_a_roofline_as_step_costs_agrees_with_the_roofline_away_from_the_corner() -> None:
    shape, draft = named_shape("llama-3.1-8b"), named_shape("llama-3.2-1b")
    device = Hardware.named("h100")
    latency = RooflineLatency(target=shape, draft=draft, target_hardware=device, draft_hardware=device)
    costs = step_costs_of(latency)
    for num_tokens, tolerance in ((1, 0.01), (8, 0.01), (2000, 0.05)):
        expected = float(latency.mean_array(OpKind.VERIFY, num_tokens, 1, 0))
        assert costs.target_s(num_tokens, 0, 1) == pytest.approx(expected, rel=tolerance)
    one, many = (float(latency.mean_array(OpKind.DRAFT, 1, 1, context)) for context in (0, 10_000))
    assert costs.draft_s(1, 10_000, 1) - costs.draft_s(1, 0, 1) == pytest.approx(many - one, rel=1e-3)


def test_a_draft_takes_its_weights_and_its_cache_from_the_memory() -> None:
    shape, draft = named_shape("llama-3.1-8b"), named_shape("llama-3.2-1b")
    device = Hardware.named("h100")
    latency = RooflineLatency(target=shape, draft=draft, target_hardware=device, draft_hardware=device)
    plain, drafting = kv_tokens_of(latency, with_draft=False), kv_tokens_of(latency, with_draft=True)
    assert plain == int((72e9 - 2 * shape.num_parameters) / (2 * shape.kv_numbers))
    weights = 2 * (shape.num_parameters + draft.num_parameters)
    assert drafting == int((72e9 - weights) / (2 * (shape.kv_numbers + draft.kv_numbers)))
    small = RooflineLatency(
        target=shape, draft=draft, target_hardware=Hardware.named("l4"), draft_hardware=Hardware.named("l4")
    )
    assert kv_tokens_of(small, with_draft=False) > 0
    big = RooflineLatency(
        target=named_shape("llama-3.1-70b"), draft=draft, target_hardware=device, draft_hardware=device
    )
    with pytest.raises(ValueError, match="the target's weights take 141 GB of the 72 GB"):
        kv_tokens_of(big, with_draft=False)

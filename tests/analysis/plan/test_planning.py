"""Plans: capacities by bisection, replicas by simulation, sentences that say what was computed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from analysis.explore.work.scale_out import Workers
from analysis.plan.capacity import Capacity, highest_factor
from analysis.plan.inputs import acceptance_of, measured_acceptance
from analysis.plan.machines import Machine
from analysis.plan.methods import Method, _never_longer, best_lengths, fixed, overlapped, plain
from analysis.plan.planning import PlanResult, PlanSettings, make_plan
from analysis.plan.runs import run_method
from analysis.plan.traffic import DrawnTraffic, RecordedTraffic
from analysis.plan.verdict import capacity_sentence, length_sentence, rows, summary_of
from sim.serving.settings import Server
from sim.serving.workload.arrivals import GammaArrivals
from sim.serving.workload.lengths import LognormalLengths
from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts
from traces.metrics.serving import Objectives
from traces.workload import Workload

# Memory-bound up to about 64 tokens, then compute; the draft is a tenth of it.
COSTS = StepCosts(
    target=ForwardCost(floor_s=0.02, token_s=0.02 / 64, context_s=1e-7),
    draft=ForwardCost(floor_s=0.002, token_s=0.002 / 64),
)
MACHINE = Machine(
    name="h100", costs=COSTS, kv_tokens=200_000, kv_tokens_with_draft=150_000, price_per_hour=3.6, watts=700.0
)
ACCEPTANCE = AcceptanceByPosition((0.85, 0.85, 0.85, 0.85))
TRAFFIC = DrawnTraffic(
    arrivals=GammaArrivals(100.0, 1.0),
    lengths=LognormalLengths(mean_prompt_tokens=16, mean_output_tokens=60, prompt_cv=0.5, output_cv=0.5),
)
SETTINGS = PlanSettings(
    objectives=Objectives.parse(["ttft:1000 tpot:25"]),
    max_length=3,
    num_requests=200,
    num_replications=3,
    max_replications=3,
    policies=("pearl:draft_length=3",),
)


@cache
def planned(workers: int = 1) -> PlanResult:
    return make_plan(TRAFFIC, MACHINE, ACCEPTANCE, SETTINGS, workers=Workers(count=workers))


def test_the_largest_factor_is_enclosed_from_above_and_below() -> None:
    for truth in (1e-2, 0.3, 1.0, 7.0, 400.0):
        assert highest_factor(lambda factor, truth=truth: factor <= truth, 1.0) == pytest.approx(truth, rel=0.011)  # type: ignore[misc]
        assert highest_factor(lambda factor, truth=truth: factor <= truth, truth, step=1.1) == pytest.approx(
            truth, rel=0.011
        )  # type: ignore[misc]
    assert highest_factor(lambda factor: False, 1.0) == 0.0


def test_capacities_are_compared_in_pairs() -> None:
    base = Capacity(rates=(10.0, 20.0, 30.0, 15.0))
    better = Capacity(rates=(11.0, 21.2, 30.9, 16.1))
    assert better.chance_above(base) > 0.99
    assert base.chance_above(better) < 0.01
    assert better.interval[0] < base.mean  # unpaired they could not be told apart
    assert Capacity(rates=(3.0,)).interval == (0.0, float("inf"))


@pytest.mark.long
def test_speculation_buys_devices_where_the_batch_leaves_room() -> None:
    plan = planned()
    by_name = {each.method.name: each for each in plan.methods}
    plain = by_name["none"]
    assert plan.best is not plain
    assert plan.best.capacity.mean > 1.2 * plain.capacity.mean
    assert plain.num_replicas is not None
    assert plan.best.num_replicas is not None
    assert plan.best.num_replicas < plain.num_replicas
    # As many as the rate says, give or take what the queue in front of several replicas smooths out.
    assert abs(plain.num_replicas - TRAFFIC.rate / plain.capacity.mean) <= 1.5
    for each in plan.finalists:
        assert each.at_traffic is not None
        assert each.at_traffic.summary.attainment >= SETTINGS.attainment
    assert by_name["pearl"].method.placement.value == "own_device"
    assert plan.num_devices(by_name["pearl"]) == 2 * (by_name["pearl"].num_replicas or 0)


@pytest.mark.long
def test_a_plan_is_the_same_with_any_number_of_workers() -> None:
    one, two = planned(1), planned(2)
    assert [each.capacity for each in one.methods] == [each.capacity for each in two.methods]
    assert rows(one) == rows(two)
    assert one.curves == two.curves


def test_the_verdict_is_two_sentences_with_the_numbers_of_the_table() -> None:
    plan = planned()
    first, second = summary_of(plan)["verdict"]
    assert first == length_sentence(plan.table)
    assert f"{plan.num_devices(plan.best)} h100 instead of {plan.num_devices(plan.plain)}" in second
    assert f"{plan.best.capacity.mean:.3g} requests/s" in second
    row = next(row for row in rows(plan) if row["method"] == plan.best.method.name)
    price = 3.6 * plan.num_devices(plan.best) / 3600 / (100.0 * 60) * 1e6  # type: ignore[operator]
    assert row["cost_per_million_tokens"] == pytest.approx(price)


def test_drafts_shorten_with_the_batch_and_lengthen_with_the_context() -> None:
    short = best_lengths(COSTS, ACCEPTANCE, 4, 100.0)
    lengths = [band.draft_length for band in short.bands]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (4, 0)
    long = best_lengths(COSTS, ACCEPTANCE, 4, 20_000.0)
    assert all(long.length_at(batch, 0) >= short.length_at(batch, 0) for batch in range(1, 513))
    assert long.length_at(64, 0) > short.length_at(64, 0)
    hopeless = best_lengths(COSTS, AcceptanceByPosition((0.01,)), 4, 100.0)
    assert length_sentence(hopeless) == "Do not speculate: plain decoding is the faster one at every load."


@pytest.mark.long
def test_rules_of_lengths_and_a_shared_draft_are_planned_beside_the_others() -> None:
    settings = replace(
        SETTINGS, rules=("goodput", "moving_average"), shares_draft=True, num_replications=2, max_replications=2
    )
    plan = make_plan(TRAFFIC, MACHINE, ACCEPTANCE, settings)
    by_name = {each.method.name: each for each in plan.methods}
    # Both know the load in every step, so that neither is far from the table by load; a moving average knows no costs.
    table, rule = by_name["K by load"], by_name["goodput"]
    assert rule.capacity.mean >= 0.97 * table.capacity.mean
    assert by_name["none"].capacity.mean < by_name["moving average"].capacity.mean <= 1.03 * rule.capacity.mean
    assert by_name["moving average"].method.rule.max_length == 3  # type: ignore[union-attr]
    own, shared = by_name["pearl"], by_name["pearl, one draft"]
    assert shared.capacity == own.capacity  # of one replica
    assert own.num_replicas
    assert plan.num_devices(own) == 2 * own.num_replicas
    if shared.num_replicas is not None:
        assert plan.num_devices(shared) == shared.num_replicas + 1
        assert shared.num_replicas >= own.num_replicas  # they wait for each other
        assert plan.devices_per_replica(shared) == pytest.approx(1 + 1 / shared.num_replicas)


@pytest.mark.long
def test_one_draft_device_does_not_serve_any_number_of_replicas() -> None:
    """Here a draft's token takes as long as the target's, so that two replicas keep its device busy all the time."""
    slow = replace(MACHINE, costs=replace(COSTS, draft=replace(COSTS.target, floor_s=0.01)))
    settings = replace(SETTINGS, shares_draft=True, num_replications=2, max_replications=2, num_requests=100)
    plan = make_plan(TRAFFIC, slow, ACCEPTANCE, settings)
    by_name = {each.method.name: each for each in plan.methods}
    assert by_name["pearl"].num_replicas
    assert by_name["pearl, one draft"].num_replicas is None


@pytest.mark.parametrize(
    ("changes", "told"), [({"rules": ("best",)}, "'best'"), ({"rules": ("goodput",), "max_length": 0}, "max_length")]
)
def test_rules_that_do_not_exist_or_have_no_lengths_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one policy"):
        PlanSettings(objectives=SETTINGS.objectives, shares_draft=True)


def test_objectives_that_nothing_can_meet_are_refused_with_the_reason() -> None:
    settings = replace(SETTINGS, objectives=Objectives.parse(["ttft:1000 tpot:4"]), policies=())
    with pytest.raises(ValueError, match=r"tpot:4 cannot be met on h100: even alone only \d+% of the requests do"):
        make_plan(TRAFFIC, MACHINE, ACCEPTANCE, settings)
    settings = replace(SETTINGS, objectives=Objectives.parse(["ttft:5"]), policies=())
    with pytest.raises(ValueError, match="ttft:5 cannot be met"):
        make_plan(TRAFFIC, MACHINE, ACCEPTANCE, settings)


def test_a_memory_smaller_than_a_request_is_refused() -> None:
    with pytest.raises(ValueError, match=r"request \d+ needs \d+ blocks of 16 tokens for prompt and output"):
        make_plan(TRAFFIC, replace(MACHINE, kv_tokens=160, kv_tokens_with_draft=160), ACCEPTANCE, SETTINGS)


def test_a_draft_beside_the_target_leaves_less_memory_and_one_apart_does_not() -> None:
    machine = replace(MACHINE, kv_tokens=20_000, kv_tokens_with_draft=800)
    workload = TRAFFIC.sample(100, 0)
    server = Server()

    def num_running(method: Method) -> int:
        run = run_method(method, workload, machine, server, ACCEPTANCE, SETTINGS.objectives, seed=0)
        assert run.kv_share < 1
        return run.max_running

    assert num_running(fixed(2)) < 0.5 * num_running(plain())
    assert num_running(overlapped("pearl:draft_length=2")) > 1.5 * num_running(fixed(2))


def test_a_traffic_with_hardly_any_output_says_that_it_hardly_matters() -> None:
    traffic = DrawnTraffic(
        arrivals=GammaArrivals(3.0, 1.0),
        lengths=LognormalLengths(mean_prompt_tokens=800, mean_output_tokens=4, prompt_cv=0.2, output_cv=0.2),
    )
    settings = replace(SETTINGS, policies=(), objectives=Objectives.parse(["ttft:2000"]), max_length=2)
    plan = make_plan(traffic, MACHINE, ACCEPTANCE, settings)
    assert capacity_sentence(plan).startswith("For capacity it hardly matters: outputs are 1% of all tokens")


def test_stretches_of_a_recorded_traffic_follow_one_another() -> None:
    arrival_s = np.concatenate([np.arange(100.0), 100 + 0.1 * np.arange(100), 200 + np.arange(100.0)])
    lengths = np.arange(1, 301)
    traffic = RecordedTraffic(
        workload=Workload(arrival_s=arrival_s, prompt_tokens=lengths, output_tokens=lengths), source=""
    )
    assert traffic.sample(120, 1).prompt_tokens.tolist() == list(range(121, 241))
    assert traffic.sample(120, 2).prompt_tokens.tolist() == list(range(1, 121))
    assert traffic.sample(120, 0, rate_factor=2.0).arrival_s[99] == 49.5
    assert traffic.busiest(100, 0).prompt_tokens.tolist() == list(range(101, 201))
    assert traffic.sample(1000, 5).num_requests == 300


def test_acceptance_is_measured_round_by_round(make_trace) -> None:  # type: ignore[no-untyped-def]
    trace = replace(make_trace(num_tokens=8, seed=0), ranks=(0, 0, 1, 0, 1, 0, 0, 0))
    # Rounds of two: accepts 2 (emits tokens 0 to 2), then 1 (tokens 3, 4), then 2 (tokens 5 to 7).
    assert measured_acceptance([trace], 2).conditional == (1.0, 2 / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "share of drafts that is accepted is needed"),
        ("72,51", "divide percent by 100"),
        ("0.5,0.7", "never rise with the position"),
        ("high", "is not a list of numbers"),
        ("-0.1", r"must lie in \[0, 1\]"),
        ("nan", r"must lie in \[0, 1\]"),
    ],
)
def test_nonsense_acceptance_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acceptance_of(text, None, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attainment": 0.0}, "attainment must lie in"),
        ({"attainment": 1.1}, "attainment must lie in"),
        ({"max_length": -1}, "max_length must lie between 0 and 32"),
        ({"max_length": 1000}, "max_length must lie between 0 and 32"),
        ({"num_requests": 3}, "at least 100 requests"),
        ({"num_replications": 1}, "num_replications must be at least 2"),
        ({"precision": 0.0}, "precision must lie in"),
        ({"max_replicas": 0}, "max_replicas must be at least 1"),
    ],
)
def test_nonsense_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_lengths_that_never_rise_lose_the_least() -> None:
    """By trying all of them; of those that lose as little, the shortest at each load."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        losses = rng.integers(0, 3, (5, 4)) * 0.125  # sums of these are exact enough for ties to be ties
        lost = {
            lengths: sum(losses[batch, length] / (batch + 1) for batch, length in enumerate(lengths))
            for lengths in itertools.product(range(4), repeat=5)
            if list(lengths) == sorted(lengths, reverse=True)
        }
        least = min(lost.values())
        best = [lengths for lengths, value in lost.items() if value <= least + 1e-12]
        assert tuple(_never_longer(losses)) == tuple(min(column) for column in zip(*best, strict=True))

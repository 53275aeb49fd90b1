"""The choice of each method's settings: as good as trying everything, at any cost ratio, and never behind what it contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from analysis.tuning.choosing import AUTO_TRIED, choose_lookup, choose_policies, contained_in
from analysis.tuning.families import families
from analysis.tuning.measured import Measured
from analysis.tuning.search import Axis, Chosen, Family, tune
from sim.decoding.informed import ClassConfusion, said_classes
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.decoding.replay import check_answers, replay
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from tests.analysis.tuning.exhaustive import (
    best_speed,
    flat_latency,
    geometric_traces,
    grids,
    shortfall,
    threshold_grids,
)
from traces.schema import RequestTrace, Signal

CONTAIN_PEARL = (
    "specbranch without H-RAD",
    "specbranch without branches and H-RAD",
    "specbranch without H-RAD, fixed count",
    "outcome_hedging",
)
MOST_BEHIND, AUTO_MOST_BEHIND = 0.01, 0.03  # of the best policy that there is


@pytest.fixture
def traces(make_trace: Callable[..., RequestTrace]) -> list[RequestTrace]:
    return [make_trace(num_tokens=60, seed=seed, acceptance=0.55, tail_depth=40) for seed in range(6)]


def speed_of(policy: Policy, traces: list[RequestTrace], latency: LatencyModel) -> float:
    return float(sweep([policy], traces, latency).decode_tokens_per_s[0])


def speeds_of(chosen: Mapping[str, Chosen]) -> dict[str, float]:
    return {name: choice.tokens_per_s for name, choice in chosen.items()}


def check_choices(cost_ratio: float, alpha: float, *, step: int, num: int) -> None:
    traces, latency = geometric_traces(alpha, num=num), flat_latency(cost_ratio)
    chosen = choose_policies(traces, latency)
    best = {
        name: best_speed(policies, traces, latency) for name, policies in grids(cost_ratio, alpha, step=step).items()
    }
    best |= dict.fromkeys(("confidence_stop", "adaedl", "product_rule"), best["fixed_length"])  # signals tell nothing
    behind = shortfall(speeds_of(chosen), best)
    assert max(behind.values()) <= MOST_BEHIND, f"c = {cost_ratio}, alpha = {alpha}: {behind}"
    at_once = speeds_of(choose_policies(traces, latency, max_tried=AUTO_TRIED))
    auto = shortfall(at_once, best)
    assert max(auto.values()) <= AUTO_MOST_BEHIND, f"c = {cost_ratio}, alpha = {alpha}, auto: {auto}"
    for name in CONTAIN_PEARL:
        assert at_once[name] >= at_once["pearl"] * (1 - 1e-12), f"c = {cost_ratio}, alpha = {alpha}, auto: {at_once}"
    print(f"c = {cost_ratio:g}, alpha = {alpha}: {max(behind.values()):.2%} behind, auto {max(auto.values()):.2%}")


@pytest.mark.long
@pytest.mark.parametrize(("cost_ratio", "alpha", "step"), [(12.0, 0.8, 5), (3.0, 0.65, 2)])
def test_choices_are_as_good_as_a_coarse_search_of_everything(cost_ratio: float, alpha: float, step: int) -> None:
    check_choices(cost_ratio, alpha, step=step, num=4)


@pytest.mark.slow
@pytest.mark.parametrize("cost_ratio", [3.0, 6.0, 12.0, 20.0])
@pytest.mark.parametrize("alpha", [0.5, 0.65, 0.8, 0.9])
def test_choices_are_as_good_as_trying_everything(cost_ratio: float, alpha: float) -> None:
    check_choices(cost_ratio, alpha, step=int(cost_ratio // 3), num=4)


@pytest.mark.long
def test_thresholds_are_as_good_as_trying_everything(traces: list[RequestTrace]) -> None:
    latency = flat_latency(12.0)
    chosen = choose_policies(traces, latency)
    intercept, slope = Measured.of(traces, latency).curve
    best = {
        name: best_speed(
            (
                replace(policy, intercept=intercept, slope=slope) if name == "product_rule" else policy
                for policy in grid
            ),
            traces,
            latency,
        )
        for name, grid in threshold_grids(24).items()
    }
    behind = shortfall(speeds_of(chosen), best)
    assert max(behind.values()) <= MOST_BEHIND, behind


@pytest.mark.long
@pytest.mark.parametrize(("cost_ratio", "max_tried"), [(3.0, AUTO_TRIED), (16.0, 400)])
def test_no_method_is_predicted_behind_what_it_contains(
    traces: list[RequestTrace], cost_ratio: float, max_tried: int
) -> None:
    latency = ConstantLatency(draft_s=1 / cost_ratio, verify_s=1.0)
    chosen = choose_policies(traces, latency, max_tried=max_tried)
    speeds = speeds_of(chosen)
    contained = [name for name, choice in chosen.items() if as_outcome_hedging(choice.policy) is not None]
    assert len(contained) >= 6
    for name in contained:
        assert speeds["outcome_hedging"] >= speeds[name] * (1 - 1e-12)
    for name in ("specbranch without H-RAD", "specbranch without branches and H-RAD"):
        assert speeds[name] >= speeds["pearl"] * (1 - 1e-12)


def test_pearl_inside_specbranch_runs_pearls_rounds(traces: list[RequestTrace]) -> None:
    inside = contained_in(SpecBranch(uses_hrad=False, max_branches=8), Pearl(7))
    assert isinstance(inside, SpecBranch)
    for trace in traces:
        assert replay(inside, trace) == replay(Pearl(7), trace)
    assert contained_in(SpecBranch(uses_hrad=True), Pearl(7)) is None


def test_a_choice_is_predicted_as_the_sweep_predicts_it(traces: list[RequestTrace]) -> None:
    latency = flat_latency(8.0)
    for choice in choose_policies(traces, latency, max_tried=AUTO_TRIED).values():
        assert choice.tokens_per_s == pytest.approx(speed_of(choice.policy, traces, latency), rel=1e-12)


def test_no_candidate_asks_for_more_than_was_recorded(make_trace: Callable[..., RequestTrace]) -> None:
    shallow = [make_trace(num_tokens=30, seed=seed, tail_depth=9) for seed in range(3)]
    latency = ConstantLatency(draft_s=1 / 40, verify_s=1.0)  # asks for windows of 40 tokens
    chosen = choose_policies(shallow, latency, max_tried=400)
    flagged = [limit for choice in chosen.values() for limit in choice.limits]
    assert any("9 draft tokens after a wrong one" in limit for limit in flagged), flagged
    foreign = [
        replace(
            trace, ranks=tuple(min(rank, 1) for rank in trace.ranks), known_ranks=1, signals=(), tails={}, tail_depth=0
        )
        for trace in shallow
    ]
    for recorded in (shallow, foreign):
        for family in families(Measured.of(recorded, latency)).values():
            near = [near for start in family.starts[::7] for near in family.neighbours(start)]
            for policy in [*family.starts, *near]:
                check_answers(recorded[0], policy.needs)
    assert set(choose_policies(foreign, latency)) == {"autoregressive", "fixed_length", "pearl"}


def test_choices_with_classes_keep_to_the_window_that_these_speak_of(traces: list[RequestTrace]) -> None:
    told = [
        replace(
            trace,
            class_probs=said_classes(trace.ranks, 3, ClassConfusion.knowing(1.0), np.random.default_rng(0)),
            class_window=3,
        )
        for trace in traces
    ]
    latency = flat_latency(12.0)
    for max_tried in (AUTO_TRIED, 400):
        chosen = choose_policies(
            told, latency, max_tried=max_tried, names=["specbranch", "specbranch without branches"]
        )
        for name in ("specbranch", "specbranch without branches"):
            assert chosen[name].policy.needs.class_window == 3
    unknown = [replace(trace, class_window=0) for trace in told]
    free = choose_policies(unknown, latency, max_tried=400, names=["specbranch"])["specbranch"]
    assert free.policy.needs.class_window > 3  # which nothing forbids


def test_the_search_widens_until_no_neighbour_is_better_and_flags_an_end() -> None:
    def measure(policies: list[Policy]) -> np.ndarray:
        return np.array([-abs(policy.draft_length - 47) for policy in policies], float)  # type: ignore[attr-defined]

    wide = Family(starts=(FixedLength(2),), axes=(Axis.of("draft_length", range(1, 65), limit="that is all"),))
    assert tune(wide, measure).policy == FixedLength(47)  # type: ignore[arg-type]
    assert tune(wide, measure).limits == ()  # type: ignore[arg-type]
    narrow = replace(wide, axes=(Axis.of("draft_length", range(1, 33), limit="that is all"),))
    ended = tune(narrow, measure)  # type: ignore[arg-type]
    assert ended.policy == FixedLength(32)
    assert ended.limits == ("draft_length at 32: that is all",)
    hurried = tune(wide, measure, max_tried=3)  # type: ignore[arg-type]
    assert hurried.num_tried == 3


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
    assert choose_lookup([wrong], latency)["prompt_lookup"].policy == PromptLookup(1)
    right = RequestTrace(**{**vars(wrong), "ranks": (0,) * 40, "tails": {40: (nothing,) * 16}})
    assert choose_lookup([right], latency)["prompt_lookup"].policy == PromptLookup(10)

"""Each policy's rules by hand: every threshold, class and count changes an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from sim.decoding.policies.base import Hedges, Observation, Policy, Verdict
from sim.decoding.policies.catalog import POLICIES, PolicyError, label_of, make_policy, parse_policy
from sim.decoding.policies.overlapped.outcome_hedging import Choice, OutcomeHedging
from sim.decoding.policies.overlapped.probe import Probe
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.replay import replay
from traces.schema import RequestTrace, RollbackCase, Signal


def _signal(probability: float) -> Signal:
    margin = math.log(probability / (1 - probability)) if 0 < probability < 1 else 20.0
    return Signal(probability, 1 - probability, max(0.0, margin))


def _seen(
    *, was_hit: bool = False, classes: tuple[float, float, float] | None = None, memory: object = None
) -> Observation:
    return Observation(100, 3, 10, 6, 4, 2, was_hit, classes, memory)


REJECT, CONFIDENCE, ACCEPT = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)
SURE, UNSURE = _signal(0.9), _signal(0.2)


def _drafts(policy: Policy, seen: Observation, signals: list[Signal]) -> int:
    """How many tokens a policy drafts serially when they show these signals, one after another."""
    drafted: list[Signal] = []
    while (more := policy.draft_more(seen, drafted)) > 0 and len(drafted) < len(signals):
        drafted += signals[len(drafted) : len(drafted) + more]
    return len(drafted)


@pytest.mark.parametrize("label", POLICIES)
def test_labels_read_back(label: str) -> None:
    policy = parse_policy(label)
    assert parse_policy(label_of(policy)) == policy
    assert isinstance(policy, Policy)
    assert hash(policy) == hash(parse_policy(label))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("magic", "unknown policy 'magic'"),
        ("fixed_length:draft_length=0", "draft_length must be at least 1"),
        ("fixed_length:length=3", "no setting 'length'"),
        ("pearl:draft_length=many", "draft_length"),
        ("pearl:3", "not a setting; write"),
        ("autoregressive:draft_length=3", "no settings"),
        ("saguaro:acceptance=1.0", "between 0 and 1"),
        ("specbranch:max_branches=0", "max_branches must be at least 1"),
    ],
)
def test_a_bad_label_is_one_clear_error(label: str, told: str) -> None:
    with pytest.raises(PolicyError, match=told) as error:
        parse_policy(label)
    assert "\n" not in str(error.value)


def test_settings_of_a_study_are_strict_about_names() -> None:
    assert make_policy("pearl", {"draft_length": 3}) == parse_policy("pearl:draft_length=3")


def test_confidence_stops_after_the_first_unsure_token_and_submits_it() -> None:
    policy = parse_policy("confidence_stop:threshold=0.5,max_length=6")
    assert _drafts(policy, _seen(), [SURE, SURE, UNSURE, SURE, SURE, SURE]) == 3
    assert policy.keep(_seen(), [SURE, SURE, UNSURE]) == 3
    assert _drafts(policy, _seen(), [SURE] * 9) == 6
    assert _drafts(parse_policy("confidence_stop:threshold=0.1,max_length=6"), _seen(), [SURE, UNSURE] * 3) == 6


def test_adaedl_stops_on_entropy_and_its_threshold_follows_the_acceptance() -> None:
    policy = parse_policy("adaedl:threshold=0.4,entropy_factor=0.2,max_length=8")
    low, high = Signal(0.9, 0.5, 1.0), Signal(0.2, 3.0, 1.0)  # bounds 0.68 and 0.23
    assert _drafts(policy, _seen(), [low, low, high, low]) == 3
    assert _drafts(policy, _seen(memory=(0.9, 0.1)), [low, low, high, low]) == 4
    rejected = policy.learn(None, Verdict(4, 0, False))
    accepted = policy.learn((0.5, 0.4), Verdict(4, 4, False))
    assert rejected[1] == pytest.approx(0.9 * 0.4 + 0.1 * 0.41)
    assert rejected[0] == pytest.approx(0.45)
    assert policy.learn((1.0, 0.4), Verdict(4, 4, False))[1] < 0.4 < accepted[1]
    assert policy.learn((1.0, 0.4), Verdict(8, 8, False))[1] == 0.4  # a full window leaves it
    assert policy.learn((0.3, 0.2), Verdict(0, 0, False)) == (0.3, 0.2)


def test_product_rule_stops_when_some_token_is_probably_wrong() -> None:
    policy = parse_policy("product_rule:intercept=0,slope=1,threshold=0.5,max_length=9")
    assert _drafts(policy, _seen(), [SURE] * 9) == 7  # 0.9^7 < 0.5
    assert _drafts(policy, _seen(), [_signal(0.6)] * 9) == 2


def test_pearl_hedges_the_whole_window_only() -> None:
    policy = parse_policy("pearl:draft_length=5")
    assert policy.hedge(_seen(), [SURE] * 3, UNSURE) == Hedges((0, 0, 0, 1), 4)
    assert policy.hedge(_seen(), [], UNSURE) == Hedges((1,), 4)
    assert policy.draft_more(_seen(), []) == 0


def test_the_branch_count_follows_the_paper() -> None:
    policy = SpecBranch(max_branches=8)
    for probability, count in ((0.99, 1), (0.75, 2), (0.5, 4), (0.05, 7)):
        fanout = policy.hedge(_seen(), [SURE, SURE], Signal(probability, 1.0, 1.0)).fanout
        assert fanout == (0, 0, count)
    fixed = SpecBranch(max_branches=8, is_fixed_count=True)
    assert fixed.hedge(_seen(), [], SURE).fanout == (8,)


def test_epsilon_places_the_branch_point() -> None:
    window = [SURE, UNSURE, SURE]
    assert SpecBranch(epsilon=0.3).keep(_seen(classes=CONFIDENCE), window) == 1
    assert SpecBranch(epsilon=0.1).keep(_seen(classes=CONFIDENCE), window) == 3
    assert SpecBranch(epsilon=0.0, uses_hrad=False).keep(_seen(), window) == 3


@pytest.mark.parametrize(("classes", "kept", "drafted"), [(REJECT, 0, 0), (CONFIDENCE, 2, 3), (ACCEPT, 4, 4)])
def test_each_class_decides_differently(classes: tuple[float, float, float], kept: int, drafted: int) -> None:
    policy = SpecBranch(draft_length=4, epsilon=0.5)
    window = [SURE, SURE, UNSURE, SURE]
    assert policy.keep(_seen(was_hit=True, classes=classes), window) == kept
    assert _drafts(policy, _seen(classes=classes), window) == drafted
    without = SpecBranch(draft_length=4, epsilon=0.5, uses_hrad=False)
    assert without.keep(_seen(was_hit=True, classes=classes), window) == 2


def test_after_a_hit_nothing_is_drafted_serially() -> None:
    assert SpecBranch(uses_hrad=False).draft_more(_seen(was_hit=True), []) == 0
    assert SpecBranch(uses_hrad=False).draft_more(_seen(), []) == 1
    assert SpecBranch(uses_hrad=False, on_miss=OnMiss.OVERLAP).draft_more(_seen(), []) == 0
    assert _drafts(SpecBranch(uses_hrad=False, prior_length=2), _seen(), [SURE] * 5) == 2


def test_the_classes_change_the_rounds_of_a_trace(make_trace: Callable[..., RequestTrace]) -> None:
    trace = make_trace(num_tokens=200, with_classes=True)
    whole, without = replay(SpecBranch(), trace), replay(SpecBranch(uses_hrad=False), trace)
    assert {turn.predicted_class for turn in whole} == {0, 1, 2}
    assert [turn.num_pending for turn in whole] != [turn.num_pending for turn in without]


def test_every_rollback_case_happens_and_is_told_apart(make_trace: Callable[..., RequestTrace]) -> None:
    cases = set()
    for on_miss in OnMiss:
        for seed in range(4):
            trace = make_trace(num_tokens=200, seed=seed, with_classes=True)
            for policy in (
                SpecBranch(on_miss=on_miss, epsilon=0.6),
                SpecBranch(on_miss=on_miss, epsilon=0.0, uses_hrad=False),
            ):
                cases |= {turn.rollback_case for turn in replay(policy, trace)}
    assert cases == set(RollbackCase)


def test_geometric_fan_outs_follow_the_theorem_and_spend_the_budget() -> None:
    policy = Saguaro(fan_out=4, acceptance=0.7, miss_exponent=1.0)
    counts = policy.fanout_of(5)
    assert sum(counts) == 24
    shares = [0.7 ** (n / 2) for n in range(5)] + [0.7**2.5 * 0.3**-0.5]
    assert all(abs(count - 24 * share / sum(shares)) < 1 for count, share in zip(counts, shares, strict=True))
    assert Saguaro(fan_out=2, spread=FanOut.UNIFORM).fanout_of(3) == (2, 2, 2, 2)


def test_a_cache_miss_drafts_just_in_time() -> None:
    policy = Saguaro(draft_length=4)
    assert policy.draft_more(_seen(), []) == 4
    assert policy.draft_more(_seen(was_hit=True), [SURE] * 4) == 0


def test_outcome_weights_are_a_law() -> None:
    policy = OutcomeHedging(max_branches=500, intercept=-0.5, slope=0.8)
    outcomes = policy.outcomes([SURE, UNSURE], _signal(0.6))
    assert outcomes == sorted(outcomes, key=lambda outcome: -outcome[0])
    betas = [policy.accept_probability(signal) for signal in (SURE, UNSURE, _signal(0.6))]
    by_count = [sum(weight for weight, n in outcomes if n == count) for count in range(3)]
    assert by_count == pytest.approx([1 - betas[0], betas[0] * (1 - betas[1]), betas[0] * betas[1]], abs=1e-9)


def test_hedges_are_the_heaviest_outcomes() -> None:
    policy = OutcomeHedging(max_branches=5, rank_decay=0.5)
    unsure_early = policy.hedge(_seen(), [UNSURE, SURE], SURE).fanout
    unsure_late = policy.hedge(_seen(), [SURE, UNSURE], SURE).fanout
    assert unsure_early[0] > unsure_late[0]
    assert sum(unsure_early) == sum(unsure_late) == 5
    flat, steep = OutcomeHedging(max_branches=5, rank_decay=0.9), OutcomeHedging(max_branches=5, rank_decay=0.1)
    assert steep.hedge(_seen(), [SURE] * 3, UNSURE).fanout != flat.hedge(_seen(), [SURE] * 3, UNSURE).fanout
    assert policy.hedge(_seen(), [], SURE) == Hedges((5,), 5)


def test_a_token_is_submitted_while_it_pays() -> None:
    window = [SURE, UNSURE, UNSURE, UNSURE, SURE]
    assert OutcomeHedging(least_reach=0.0).keep(_seen(), window) == 5
    reached = [1.0]
    for signal in window:
        reached.append(reached[-1] * OutcomeHedging().accept_probability(signal))
    for kept in range(1, 5):
        assert OutcomeHedging(least_reach=reached[kept]).keep(_seen(), window) == kept
        assert OutcomeHedging(least_reach=1.01 * reached[kept]).keep(_seen(), window) == kept - 1


def test_one_doubtful_token_ends_the_window_where_that_is_asked_for() -> None:
    window = [SURE, UNSURE, SURE]
    doubt = OutcomeHedging().accept_probability(UNSURE)
    assert OutcomeHedging(least_reach=0.0, least_acceptance=doubt).keep(_seen(), window) == 3
    assert OutcomeHedging(least_reach=0.0, least_acceptance=1.01 * doubt).keep(_seen(), window) == 1


def test_the_target_waits_for_at_most_the_serial_length_and_never_after_a_hit() -> None:
    policy = OutcomeHedging(serial_length=3, least_reach=0.0)
    assert _drafts(policy, _seen(), [SURE] * 9) == 3
    assert _drafts(policy, _seen(was_hit=True), [SURE] * 9) == 0
    assert _drafts(OutcomeHedging(), _seen(), [SURE] * 9) == 0
    assert _drafts(OutcomeHedging(serial_length=6, least_reach=0.3), _seen(), [SURE, UNSURE, SURE, SURE, SURE]) == 2


def test_a_constant_acceptance_reads_no_signal() -> None:
    assert OutcomeHedging().needs.signals
    assert not OutcomeHedging(slope=0.0).needs.signals
    assert OutcomeHedging(slope=0.0, hedges=Choice.CONFIDENCE).needs.signals
    policy = OutcomeHedging(slope=0.0, intercept=0.4)
    assert policy.hedge(_seen(), [SURE] * 3, UNSURE) == policy.hedge(_seen(), [UNSURE] * 3, SURE)
    with pytest.raises(ValueError, match="give slope=0"):
        OutcomeHedging(hedges=Choice.GEOMETRIC)


REDUCIBLE = [
    "autoregressive",
    *(f"fixed_length:draft_length={length}" for length in (1, 4)),
    *(f"pearl:draft_length={length}" for length in (1, 2, 6)),
    *(
        f"saguaro:draft_length={length},fan_out={fan_out},acceptance={acceptance},spread={spread}"
        for length in (1, 3, 5)
        for fan_out in (1, 3)
        for acceptance in (0.35, 0.559, 0.9)
        for spread in FanOut
    ),
    *(
        f"specbranch:uses_hrad={hrad},draft_length=5,{rule},on_miss={on_miss},prior_length={prior},max_branches=6,{count}"
        for hrad in ("false", "true")
        for rule in ("epsilon=0.3", "epsilon=0.9,signal=margin", "epsilon=-1.2,signal=negative_entropy")
        for on_miss in OnMiss
        for prior in (0, 2)
        for count in ("is_fixed_count=true", "is_fixed_count=false")
    ),
]


@pytest.mark.parametrize("label", REDUCIBLE)
def test_outcome_hedging_reduces_to_the_very_rounds_of_other_methods(
    make_trace: Callable[..., RequestTrace], label: str
) -> None:
    theirs = parse_policy(label)
    ours = as_outcome_hedging(theirs)
    assert ours is not None
    assert ours.needs.signals <= theirs.needs.signals
    assert ours.overlaps == theirs.overlaps
    assert ours.needs.drafts == theirs.needs.drafts
    assert parse_policy(label_of(ours)) == ours
    for seed in range(3):
        trace = make_trace(num_tokens=150, seed=seed, with_classes=True)
        assert replay(ours, trace) == replay(theirs, trace)


def test_what_outcome_hedging_does_not_contain_has_no_reduction() -> None:
    for label in ("saguaro:miss_exponent=2", "adaedl", "product_rule", "probe"):
        assert as_outcome_hedging(parse_policy(label)) is None


def test_the_probe_times_every_width_with_a_waiting_and_with_a_working_draft(
    make_trace: Callable[..., RequestTrace],
) -> None:
    rounds = [turn for seed in range(20) for turn in replay(Probe(), make_trace(num_tokens=120, seed=seed))[:-8]]
    looks = {True: set[int](), False: set[int]()}
    for turn in rounds:
        others = turn.num_serial + turn.num_branch_steps
        looks[turn.num_draft_forwards > others].add(turn.num_pending)
    assert looks[True] >= {0, 1, 2, 3, 4, 5, 6, 8}
    assert looks[False] >= {0, 1, 2, 3, 4, 5, 6, 8}
    assert {(turn.num_branches, turn.num_branch_steps) for turn in rounds} == {(0, 0), (1, 1), (1, 3), (1, 6), (3, 2)}
    short = [turn for seed in range(5) for turn in replay(Probe(2, 1), make_trace(num_tokens=120, seed=seed))]
    assert max(turn.num_pending for turn in short) == 2
    assert max(turn.num_branches for turn in short) == 1

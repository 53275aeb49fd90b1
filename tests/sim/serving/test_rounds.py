"""Where rounds come from: run lengths, plans and machines tell one story, and rules choose lengths by the load."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.decoding.policies.by_load import ByLoad, hedging_by_load
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import closed_rounds
from sim.serving.rounds.base import RoundSource, ServerLoad
from sim.serving.rounds.length_rules import Band, GoodputRule, Joining, LengthTable, MovingAverageRule
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.machines import MachineRounds
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.rounds.run_lengths import LONGEST_RUN, drawn_runs, recorded_runs
from traces.schema import RequestTrace

MakeTrace = Callable[..., RequestTrace]


def load_of(num_running: int, context: int = 100) -> ServerLoad:
    return ServerLoad(num_running, 0, 0.0, num_running * context)


def emitted_by(source: RoundSource, request: int, num_tokens: int) -> list[int]:
    """Tokens of each round until the request has emitted so many."""
    place, left, emitted = source.begin(request), num_tokens, []
    while left:
        rounds = source.next(np.array([place]), np.array([left]), load_of(1))
        emitted.append(int(rounds.num_emitted[0]))
        place, left = place + int(rounds.steps[0]), left - emitted[-1]
    return emitted


def test_runs_plans_and_machines_give_the_replayed_rounds(make_trace: MakeTrace) -> None:
    traces = [make_trace(num_tokens=50 + seed, seed=seed) for seed in range(5)]
    policy = FixedLength(4)
    sources = [
        LengthRounds(recorded_runs(traces, 5), FixedLengthRule(4), trims=True),
        PlannedRounds(Plan([policy], traces), takes_traces_lengths=True),
        MachineRounds([policy], traces, max_pending=4, takes_traces_lengths=True),
    ]
    for request, trace in enumerate(traces):
        expected = [command.round.num_emitted for command in closed_rounds(policy, trace)]
        for source in sources:
            assert source.num_output_tokens(request, 1) == trace.num_tokens
            assert emitted_by(source, request, trace.num_tokens) == expected


def test_an_output_longer_than_its_trace_goes_on_in_the_next_one(make_trace: MakeTrace) -> None:
    traces = [make_trace(num_tokens=20, seed=seed) for seed in range(3)]
    for source in (
        PlannedRounds(Plan([Pearl(3)], traces)),
        MachineRounds([Pearl(3)], traces, max_pending=3),
        LengthRounds(recorded_runs(traces, 3, 100), FixedLengthRule(3)),
    ):
        assert sum(emitted_by(source, 2, 70)) == 70
    policy = Pearl(3)
    first = [command.round.num_emitted for command in closed_rounds(policy, traces[1])]
    assert emitted_by(PlannedRounds(Plan([policy], traces)), 1, 70)[: len(first)] == first


def test_drawn_runs_follow_the_measured_acceptance() -> None:
    chances = [0.9, 0.5, 0.8]
    runs = drawn_runs(chances, 10, 10, np.random.default_rng(1)).runs
    for depth, survival in enumerate(np.cumprod([*chances, 0.8, 0.8]), start=1):
        share = float((runs >= depth).mean())
        stderr = np.sqrt(survival * (1 - survival) / len(runs))
        assert abs(share - survival) <= 4 * stderr, f"depth {depth}: {share:.4f} for {survival:.4f}"
    assert runs.max() <= LONGEST_RUN
    assert drawn_runs([0.0], 1, 1, np.random.default_rng(0)).runs.max() == 0
    with pytest.raises(ValueError, match=r"must be chances in \[0, 1\]"):
        drawn_runs([72.0], 1, 1, np.random.default_rng(0))


def test_a_draft_that_rests_either_keeps_its_cache_or_catches_up() -> None:
    table = drawn_runs([0.5], 4, 50, np.random.default_rng(0))
    rule = LengthTable.of((1, 2, 3), (3, None, 0))

    def rounds_at(source: LengthRounds, running: int) -> tuple[int, bool, int]:
        places = np.zeros(running, dtype=np.int64)
        rounds = source.next(places, np.full(running, 50), load_of(running))
        return rounds.draft_length, rounds.keeps_draft, rounds.draft_behind

    keeping = LengthRounds(table, rule, drafts_at_zero=True)
    resting = LengthRounds(table, rule, drafts_at_zero=False)
    assert rounds_at(keeping, 3) == (0, True, 0)
    assert rounds_at(resting, 3) == (0, False, 0)
    assert rounds_at(resting, 4) == (0, False, 0)
    assert rounds_at(keeping, 2) == (3, False, 0)
    assert rounds_at(resting, 2) == (3, False, 7)
    assert rounds_at(resting, 2) == (3, False, 0)
    plain = LengthRounds(table, FixedLengthRule(0))
    assert rounds_at(plain, 3) == (0, False, 0)  # there is no draft to keep


def test_a_table_reads_as_vllm_reads_it() -> None:
    table = LengthTable.of((1, 64, 3), (65, 128, 1), (129, None, 0))
    assert [table.length_at(batch, 0) for batch in (1, 64, 65, 128, 129, 4000)] == [3, 3, 1, 1, 0, 0]
    by_context = LengthTable((Band(1, 8, 4), Band(9, None, 0, 0, 1000), Band(9, None, 3, 1000)))
    assert [by_context.length_at(9, context) for context in (0, 999.9, 1000)] == [0, 0, 3]
    assert by_context.max_length == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one band"),
        ([(2, None, 3)], "leave a gap at 2"),
        ([(1, 8, 3), (10, None, 1)], "leave a gap at 10: the band before it ends at 8"),
        ([(1, 8, 3), (8, None, 1)], "overlap or are out of order at 8"),
        ([(1, None, 3), (5, None, 1)], "overlap or are out of order at 5"),
        ([(1, 8, 3)], "ends at a batch of 8"),
        ([(1, 0, 3)], "first <= last"),
        ([(1, None, -1)], "length of at least 0"),
    ],
)
def test_tables_with_gaps_or_overlaps_are_refused(rows: list[tuple[int, int | None, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthTable.of(*rows)


def test_context_bands_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="gap or overlap at 200"):
        LengthTable((Band(1, None, 3, 0, 100), Band(1, None, 2, 200)))
    with pytest.raises(ValueError, match="bands of the context end at 100"):
        LengthTable((Band(1, None, 3, 0, 100),))


def test_hysteresis_keeps_a_table_from_thrashing() -> None:
    loads = [load_of(batch) for batch in [8, 9, 8, 9, 8, 9, 12, 9, 8, 7, 6, 5]]

    def lengths(hysteresis: int) -> list[int]:
        controller = LengthTable.of((1, 8, 4), (9, None, 0), hysteresis=hysteresis).start()
        return [controller.length(load) for load in loads]

    assert lengths(0) == [4, 0, 4, 0, 4, 0, 0, 0, 4, 4, 4, 4]
    assert lengths(2) == [4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4]


class Costs:
    """Memory-bound up to 64 tokens; a draft forward is a tenth of the target's."""

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return max(1.0, num_tokens / 64)

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return max(0.1, num_tokens / 640)


def test_goodput_shortens_drafts_as_the_batch_fills_the_device() -> None:
    rule = GoodputRule(Costs(), tuple(0.8**n for n in range(1, 9)))
    lengths = [rule.best_length(load_of(batch)) for batch in (1, 4, 8, 16, 32, 64, 128)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 6
    assert lengths[-1] == 0

    def goodput(batch: int, length: int) -> float:
        emitted = sum(0.8**n for n in range(length + 1))
        costs = Costs()
        return emitted / (length * costs.draft_s(batch, 0, batch) + costs.target_s(batch * (length + 1), 0, batch))

    for batch, length in zip((1, 4, 8, 16, 32, 64, 128), lengths, strict=True):
        assert goodput(batch, length) == max(goodput(batch, other) for other in range(9))


def test_prompts_in_the_same_steps_shorten_drafts_and_change_nothing_where_there_are_none() -> None:
    acceptance = tuple(0.8**n for n in range(1, 9))
    alone = GoodputRule(Costs(), acceptance)
    none = GoodputRule(Costs(), acceptance, joining=Joining(0.0, 10.0))
    busy = GoodputRule(Costs(), acceptance, joining=Joining(200.0, 10.0))
    for batch in (1, 4, 8, 16, 32):
        load = load_of(batch)
        assert none.goodput(load, 3) == pytest.approx(alone.goodput(load, 3))
        assert busy.best_length(load) <= alone.best_length(load)
        # As long a run as one likes: outputs of 10 tokens end, each replaced by a prompt of 200, read where it fits.
        emitted, steps_s = sum(0.8**n for n in range(4)), 0.0
        num_steps, owed = 20_000, 0.0
        for _ in range(num_steps):
            owed += batch * emitted / 10
            count, owed = int(owed), owed - int(owed)
            first_s = Costs().draft_s(batch + 200 * count, 0, batch)
            steps_s += first_s + 2 * Costs().draft_s(batch, 0, batch) + Costs().target_s(4 * batch + 200 * count, 0, 0)
        assert busy.goodput(load, 3) == pytest.approx(emitted * num_steps / steps_s, rel=1e-3)
    assert busy.best_length(load_of(8)) < alone.best_length(load_of(8))
    with pytest.raises(ValueError, match="outputs of at least 1"):
        Joining(10.0, 0.0)


def test_goodput_learns_what_is_accepted() -> None:
    rule = GoodputRule(Costs(), (0.9, 0.8, 0.7, 0.6), smoothing=0.2)
    controller = rule.start()
    before = controller.length(load_of(12))
    for _ in range(60):
        controller.learn(np.ones(12, dtype=np.int64), max(controller.length(load_of(12)), 1))
    assert controller.length(load_of(12)) < before


def test_the_moving_average_climbs_and_falls_within_its_candidates() -> None:
    rule = MovingAverageRule()
    controller = rule.start()
    assert controller.length(load_of(1)) == 7
    for _ in range(100):
        controller.learn(np.array([1]), controller.length(load_of(1)))
    assert controller.length(load_of(1)) == 1
    for _ in range(200):
        length = controller.length(load_of(1))
        controller.learn(np.array([length + 1]), length)
    assert controller.length(load_of(1)) == 7
    assert controller.length(load_of(40)) == 1
    assert controller.length(load_of(64)) == 0
    with pytest.raises(ValueError, match="candidates must begin at a batch of 1"):
        MovingAverageRule(((2, (1,)),))


def test_a_machine_reads_the_load_of_every_round(make_trace: MakeTrace) -> None:
    traces = [make_trace(num_tokens=200, seed=3)]
    policy = ByLoad(((1, FixedLength(5)), (4, FixedLength(1)), (9, Autoregressive())))
    source = MachineRounds([policy], traces, max_pending=5)
    place = source.begin(0)

    def pending_at(batch: int) -> int:
        return source.next(np.array([place]), np.array([100]), load_of(batch)).num_pending

    assert [pending_at(batch) for batch in (1, 3, 4, 8, 9, 100, 2)] == [5, 5, 1, 1, 0, 0, 5]


def test_levels_of_load_are_checked_and_alone_the_first_one_runs(make_trace: MakeTrace) -> None:
    with pytest.raises(ValueError, match="must begin at 1 running request"):
        ByLoad(((2, FixedLength(1)),))
    trace = make_trace(num_tokens=80, seed=1)
    alone = closed_rounds(FixedLength(3), trace)
    assert closed_rounds(ByLoad(((1, FixedLength(3)), (2, Autoregressive()))), trace) == alone


def test_hedging_shrinks_with_the_batch_and_ends_in_plain_decoding() -> None:
    policy = hedging_by_load(OutcomeHedging(max_branches=8), 16)
    rows = [(first, getattr(level, "max_branches", 0)) for first, level in policy.levels]
    assert rows == [(1, 8), (2, 8), (4, 4), (8, 2), (16, 1), (32, 0)]
    for batch in range(1, 32):
        assert batch * getattr(policy.at(batch), "max_branches", 0) <= 31  # within a factor of two of the budget
    with pytest.raises(ValueError, match="row_budget must be at least 1"):
        hedging_by_load(OutcomeHedging(), 0)

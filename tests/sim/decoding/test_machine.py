"""The step machine: every field by hand for small cases, and conservation for policies without any sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.draft_cache import Forwards
from sim.decoding.ledger import Ledger
from sim.decoding.machine import Branch, Close, Command, DraftTokens, Keep, Look, Reply, Settle, Submit
from sim.decoding.policies.base import Defaults, Hedges, Load, Needs, Observation, Policy, Verdict
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import TraceWorld, replay
from sim.decoding.world import drive
from traces.schema import Actor, FinishReason, OpKind, RequestTrace, RollbackCase, Round, Signal

T = TypeVar("T")


@dataclass(frozen=True)
class Scripted(Defaults):
    """Answers by the round's number: draft so many, keep so many, hedge so; the last entry goes on."""

    serial: tuple[int, ...] = (0,)
    kept: tuple[int, ...] = (99,)
    fanouts: tuple[tuple[int, ...], ...] = ((),)
    num_steps: tuple[int, ...] = (0,)
    does_overlap: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(num_alternatives=8)

    @property
    def overlaps(self) -> bool:
        return self.does_overlap

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return at(self.serial, seen.num_rounds) - len(pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return at(self.kept, seen.num_rounds)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        """The round's fan-outs, counted back from the end of what is pending."""
        fanout = at(self.fanouts, seen.num_rounds)
        padded = (0,) * (len(pending) + 1) + fanout
        return Hedges(padded[len(padded) - len(pending) - 1 :], at(self.num_steps, seen.num_rounds))


def at(values: Sequence[T], index: int) -> T:
    return values[min(index, len(values) - 1)]


def trace_of(ranks: Sequence[int], *, num_beyond: int = 0) -> RequestTrace:
    reason = FinishReason.EOS if num_beyond else FinishReason.MAX_TOKENS
    return RequestTrace(3, "p", 5, len(ranks) + num_beyond, 1.0, reason, tuple(ranks))


class Listening(TraceWorld):
    """Writes down every command."""

    def __init__(self, trace: RequestTrace, needs: Needs) -> None:
        super().__init__(trace, needs)
        self.commands: list[Command] = []

    def answer(self, command: Command) -> Reply:
        self.commands.append(command)
        return super().answer(command)


def commands_of(policy: Policy, trace: RequestTrace) -> list[Command]:
    world = Listening(trace, policy.needs)
    timed = list(
        drive(
            policy, world, request_id=0, max_new_tokens=trace.max_new_tokens, num_prompt_tokens=trace.num_prompt_tokens
        )
    )
    assert timed == [command for command in world.commands if not isinstance(command, Settle | Keep)]
    return world.commands


def test_serial_rounds_by_hand() -> None:
    rejected, full, last = replay(FixedLength(3), trace_of([0, 0, 1, 0, 0, 0, 0, 2]))
    assert rejected == Round(
        request_id=3,
        round=0,
        position=0,
        num_serial=3,
        num_pending=3,
        num_accepted=2,
        num_emitted=3,
        fanout=(),
        num_branches=0,
        num_branch_steps=0,
        num_drafted=3,
        num_draft_forwards=3,
        next_rank=-1,  # one alternative was kept, the target's token is the second
        is_hit=False,
        num_kept=0,
        num_rejected=1,
        num_sibling=0,
        num_trimmed=0,
        num_unused=0,
        rollback_case=RollbackCase.REJECTED,
        predicted_class=-1,
        is_finished=False,
    )
    assert (full.position, full.num_pending, full.num_accepted, full.num_emitted) == (3, 3, 3, 4)
    assert full.rollback_case is RollbackCase.NONE
    assert (last.position, last.num_serial, last.num_pending, last.num_emitted, last.is_finished) == (7, 0, 0, 1, True)


def test_pearl_rounds_by_hand() -> None:
    # Position 0 hit (pre-verify), 1 and 2 accepted and 3 hit (post-verify), 4 rejected, 5 missed, then the end.
    rounds = replay(Pearl(3), trace_of([0, 0, 0, 0, 1, 1, 0], num_beyond=50))
    assert [done.position for done in rounds] == [0, 1, 4, 5, 6]
    assert [done.num_pending for done in rounds] == [0, 2, 2, 0, 0]
    assert [done.num_accepted for done in rounds] == [0, 2, 0, 0, 0]
    assert [done.fanout for done in rounds] == [(1,), (0, 0, 1), (0, 0, 1), (1,), (1,)]
    assert [done.num_drafted for done in rounds] == [3] * 5
    assert [done.num_draft_forwards for done in rounds] == [3] * 5
    assert [done.is_hit for done in rounds] == [True, True, False, False, False]
    assert [done.num_kept for done in rounds] == [2, 2, 0, 0, 0]
    assert [done.num_rejected for done in rounds] == [0, 0, 2, 0, 0]
    assert [done.num_unused for done in rounds] == [0, 0, 3, 3, 3]
    cases = [RollbackCase.NONE, RollbackCase.NONE, RollbackCase.REJECTED, RollbackCase.PRE_VERIFY_MISS]
    assert [done.rollback_case for done in rounds] == [*cases, RollbackCase.NONE]


def test_siblings_and_trimmed_tokens_by_hand() -> None:
    policy = Scripted(kept=(1,), fanouts=((3,),), num_steps=(4,))
    first, second, third, *_ = replay(policy, trace_of([2, 0, 1, 0, 0, 0, 0], num_beyond=50))
    assert (first.is_hit, first.num_branches, first.next_rank, first.num_drafted) == (True, 3, 2, 15)
    assert (first.num_sibling, first.num_trimmed, first.num_kept, first.num_unused) == (10, 3, 1, 0)
    assert first.rollback_case is RollbackCase.TRIMMED
    assert first.num_draft_forwards == 1 + 4  # the look, and the batch's steps
    assert (second.num_pending, second.num_accepted, second.is_hit) == (1, 1, True)
    assert second.num_draft_forwards == 4  # the trimmed hit left a known law: no look
    assert third.position == 3


def test_a_hedge_at_a_rejection_is_hit_by_ranks_1_to_f() -> None:
    for rank, is_hit in ((1, True), (2, True), (3, False)):
        policy = Scripted(serial=(2,), fanouts=((2, 0),), num_steps=(1,))
        first = replay(policy, trace_of([0, rank, 0, 0, 0, 0], num_beyond=9))[0]
        assert (first.num_accepted, first.is_hit, first.fanout) == (1, is_hit, (0, 2, 0))


def test_withdrawn_tokens_leave_a_known_law() -> None:
    policy = Scripted(serial=(4,), kept=(2, 99), does_overlap=False)
    first = replay(policy, trace_of([0, 0, 0, 0, 0, 0, 0, 0], num_beyond=9))[0]
    assert (first.num_serial, first.num_pending, first.num_unused, first.num_accepted) == (4, 2, 2, 2)
    assert first.next_rank == 0  # the withdrawn token at the branch point was the target's


def test_commands_come_in_the_order_of_plan_act_settle() -> None:
    policy = Scripted(serial=(2,), fanouts=((1,),), num_steps=(2,))
    commands = commands_of(policy, trace_of([0, 0, 0, 0, 0, 0], num_beyond=9))
    # A prompt of five tokens: four are cached. What each command forwards is said with it.
    draft, target = Actor.DRAFT, Actor.TARGET
    expected = [
        DraftTokens(2, Forwards(draft, OpKind.DRAFT, 2, 1, 1, 4)),
        Submit(2, Forwards(target, OpKind.VERIFY, 1, 3, 1, 4)),
        Look(Forwards(draft, OpKind.LOOK, 1, 1, 1, 6)),
        Branch((0, 0, 1), 2, Forwards(draft, OpKind.BRANCH, 2, 1, 1, 7)),
        Settle(),
        Keep(2),
    ]
    assert commands[: len(expected)] == expected
    closed = commands[len(expected)]
    assert isinstance(closed, Close)
    assert closed.ledger == Ledger(0, 1, 2, 0, 2, 1, 1, 2, 2, 3, True, 2, False)
    # Two are pending already: nothing to draft.
    assert commands[len(expected) + 1] == Submit(2, Forwards(target, OpKind.VERIFY, 1, 3, 1, 7))


def test_a_policy_sees_the_load_that_the_world_reports() -> None:
    loads: list[Load | None] = []

    class Watching(FixedLength):
        def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
            loads.append(seen.load)
            return 0

    class Busy(TraceWorld):
        def answer(self, command: Command) -> Reply:
            reply = super().answer(command)
            return Load(3, 7, 0.5) if isinstance(command, Close) else reply

    trace = trace_of([0, 1, 0])
    for _ in drive(Watching(2), Busy(trace, Needs()), request_id=0, max_new_tokens=3):
        pass
    assert loads == [None, Load(3, 7, 0.5), Load(3, 7, 0.5)]


@pytest.mark.parametrize("policy", [FixedLength(8), Pearl(8), Autoregressive()])
@pytest.mark.parametrize("num_beyond", [0, 20])
def test_a_request_ends_where_it_ended(policy: Policy, num_beyond: int) -> None:
    for length in (1, 2, 5, 9):
        rounds = replay(policy, trace_of([0] * length, num_beyond=num_beyond))
        assert sum(done.num_emitted for done in rounds) == length
        assert [done.is_finished for done in rounds] == [False] * (len(rounds) - 1) + [True]


def test_the_end_within_accepted_tokens_cuts_the_round() -> None:
    (only,) = replay(FixedLength(8), trace_of([0] * 5, num_beyond=20))
    assert (only.num_accepted, only.num_emitted, only.num_unused, only.num_rejected) == (5, 5, 3, 0)
    (only,) = replay(FixedLength(8), trace_of([0] * 5))  # the maximum is known: one less is drafted
    assert (only.num_serial, only.num_accepted, only.num_emitted) == (4, 4, 5)


def test_no_token_is_drafted_that_could_never_be_emitted() -> None:
    for done in replay(Pearl(4), trace_of([0] * 11)):
        last_drafted = done.position + done.num_pending + done.num_branches * (1 + done.num_branch_steps)
        assert last_drafted <= 11 - (done.num_branches > 0)  # the round after a hit adds the target's own token
    assert replay(Pearl(4), trace_of([0]))[0].num_draft_forwards == 0


def test_wrong_number_of_fanouts_is_refused() -> None:
    class Wrong(Scripted):
        def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
            return Hedges((1, 1), 1)

    with pytest.raises(ValueError, match="hedged 2 outcomes for 0 pending"):
        replay(Wrong(), trace_of([0, 0, 0]))


def test_memory_is_what_the_policy_learnt_from_every_verdict() -> None:
    seen_memories: list[object] = []

    class Learner(FixedLength):
        @property
        def needs(self) -> Needs:
            return Needs(learns=True)

        def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
            if not pending:
                seen_memories.append(seen.memory)
            return super().draft_more(seen, pending)

        def learn(self, memory: object, verdict: Verdict) -> object:
            return (*(memory or ()), verdict)  # type: ignore[misc]

    replay(Learner(2), trace_of([0, 1, 0, 0, 0, 0], num_beyond=9))
    assert seen_memories == [None, (Verdict(2, 1, False),), (Verdict(2, 1, False), Verdict(2, 2, False))]


small = st.integers(0, 5)
SENSELESS = st.builds(
    Scripted,
    serial=st.lists(small, min_size=1, max_size=6).map(tuple),
    kept=st.lists(small, min_size=1, max_size=6).map(tuple),
    fanouts=st.lists(st.lists(small, max_size=6).map(tuple), min_size=1, max_size=6).map(tuple),
    num_steps=st.lists(small, min_size=1, max_size=6).map(tuple),
    does_overlap=st.booleans(),
)
RANKS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 5]), min_size=1, max_size=50)


@settings(max_examples=300, deadline=None)
@given(policy=SENSELESS, ranks=RANKS, num_beyond=st.integers(0, 8))
def test_tokens_are_conserved(policy: Scripted, ranks: list[int], num_beyond: int) -> None:
    rounds = replay(policy, trace_of(ranks, num_beyond=num_beyond))
    drafted = sum(done.num_drafted for done in rounds)
    used = sum(done.num_accepted + done.is_hit for done in rounds)
    lost = sum(done.num_rejected + done.num_sibling + done.num_trimmed + done.num_unused for done in rounds)
    assert drafted == used + lost
    assert sum(done.num_emitted for done in rounds) == len(ranks)

    position, num_carried = 0, 0
    for number, done in enumerate(rounds):
        assert (done.round, done.position) == (number, position)
        counts = {name: value for name, value in done._asdict().items() if name.startswith("num_")}
        assert min(counts.values()) >= 0, counts
        assert done.num_accepted <= done.num_pending <= num_carried + done.num_serial
        cut_at_end = done.num_emitted == done.num_accepted
        positions = done.num_pending + 1
        assert positions == done.num_emitted + (done.num_pending - done.num_accepted) + cut_at_end
        assert done.num_rejected == (0 if cut_at_end else done.num_pending - done.num_accepted)
        assert done.num_kept <= done.num_branch_steps
        assert done.is_hit or not done.num_kept
        assert not (done.is_finished and done.is_hit)
        position, num_carried = position + done.num_emitted, done.num_kept

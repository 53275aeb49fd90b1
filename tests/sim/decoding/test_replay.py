"""Replay from ranks gives what a world with real tokens gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.machine import Branch, Close, Command, DraftTokens, Keep, Look, Reply, Settle, Settled, Submit, decode
from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import check_answers, next_mismatches, replay
from traces.schema import UNKNOWN_SIGNAL, FinishReason, RequestTrace, Round, Signal

DEPTH = 24


@dataclass(frozen=True)
class BySignals(Defaults):
    """Every answer hangs on the signals it is shown, so that a wrong signal changes the rounds."""

    salt: int = 0
    does_overlap: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=DEPTH, num_alternatives=3)

    @property
    def overlaps(self) -> bool:
        return self.does_overlap

    def _draw(self, signals: Sequence[Signal], below: int) -> int:
        return int(sum(1e6 * signal.max_prob for signal in signals) + self.salt) % below

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self._draw(pending, 3) if len(pending) < 5 else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return self._draw(drafted, len(drafted) + 2)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        counts = [self._draw([frontier, *pending[:n]], 4) for n in range(len(pending) + 1)]
        return Hedges(tuple(counts), self._draw([frontier], 5))


class TokenWorld:
    """A draft and a target with tokens: the target says 0, 1, 2, ... and the draft ranks that token as recorded.

    Off the path the draft proposes negative tokens, which the target never says. Nothing here knows of mismatch tables.
    """

    def __init__(self, trace: RequestTrace, needs: Needs) -> None:
        self.trace, self.needs = trace, needs
        self.committed: list[int] = []
        self.pending: list[int] = []
        self.withdrawn: list[int] = []
        self.rows: dict[tuple[int, int], list[Signal]] = {}
        self.is_looked = False

    def law(self, context: list[int]) -> tuple[list[int], Signal]:
        """The draft's best tokens after a context, and its confidence there."""
        position, target = len(context), self.trace
        wrong = next((i for i, token in enumerate(context) if token != i), None)
        if wrong is None and position < target.num_tokens:
            rank = target.ranks[position]
            order = [-1 - i for i in range(10)]
            return [*order[:rank], position, *order[rank:]], target.signals[position]
        first = position if wrong is None else wrong
        depth = position - (wrong + 1 if wrong is not None and wrong < target.num_tokens else target.num_tokens)
        tail = target.tails.get(min(first, target.num_tokens))  # after a losing branch none was recorded or is seen
        return [-100 - i for i in range(10)], tail[depth] if tail else UNKNOWN_SIGNAL

    def extend(self, context: list[int], count: int) -> tuple[list[int], list[Signal]]:
        tokens: list[int] = []
        signals = []
        for _ in range(count):
            order, signal = self.law(context + tokens)
            tokens.append(order[0])
            signals.append(signal)
        return tokens, signals

    def answer(self, command: Command) -> Reply:
        if isinstance(command, DraftTokens):
            tokens, signals = self.extend(self.committed + self.pending, command.num_tokens)
            self.pending += tokens
            self.is_looked = False
            return signals
        if isinstance(command, Submit):
            self.is_looked |= command.num_pending < len(self.pending)
            self.pending, self.rows = self.pending[: command.num_pending], {}
        elif isinstance(command, Look):
            self.is_looked = True
            return self.law(self.committed + self.pending)[1]
        elif isinstance(command, Branch):
            for accepted, fanout in enumerate(command.fanout):
                prefix = self.committed + self.pending[:accepted]
                excluded = self.pending[accepted : accepted + 1]
                best = [token for token in self.law(prefix)[0] if token not in excluded]
                for token in best[:fanout]:
                    _, signals = self.extend([*prefix, token], command.num_steps)
                    self.rows[accepted, token] = signals
        elif isinstance(command, Keep):
            self.is_looked = command.num_kept < len(self.pending)
            self.pending = self.pending[: command.num_kept]
        elif isinstance(command, Settle):
            return self.settle()
        else:
            assert isinstance(command, Close)
        return None

    def settle(self) -> Settled:
        num_accepted, last = 0, self.trace.num_tokens
        for token in self.pending:
            if len(self.committed) == last or token != len(self.committed):
                break
            self.committed.append(token)
            num_accepted += 1
        if len(self.committed) == last:
            return Settled(num_accepted, num_accepted, True, -1, False, (), None)
        order = self.law(self.committed)[0]
        answer = len(self.committed)
        is_known = num_accepted < len(self.pending) or self.is_looked
        rank = order.index(answer) if is_known else -1
        self.committed.append(answer)
        is_finished = len(self.committed) == last
        is_hit = (num_accepted, answer) in self.rows and not is_finished
        ahead = self.rows[num_accepted, answer] if is_hit else []
        self.pending = self.extend(self.committed, len(ahead))[0]
        self.is_looked = False
        shown = rank if rank < self.needs.num_alternatives else -1
        return Settled(num_accepted, num_accepted + 1, is_finished, shown, is_hit, tuple(ahead), None)


def run_with_tokens(policy: Policy, trace: RequestTrace) -> list[Round]:
    world = TokenWorld(trace, policy.needs)
    machine = decode(policy, request_id=trace.request_id, max_new_tokens=trace.max_new_tokens)
    rounds: list[Round] = []
    reply: Reply = None
    while True:
        try:
            command = machine.send(reply)
        except StopIteration:
            assert world.committed == list(range(trace.num_tokens))
            return rounds
        if isinstance(command, Close):
            rounds.append(command.round)
        reply = world.answer(command)


def trace_of(ranks: Sequence[int], *, num_beyond: int = 0, seed: int = 0, depth: int = DEPTH) -> RequestTrace:
    rng = np.random.default_rng(seed)

    def signals(count: int) -> tuple[Signal, ...]:
        return tuple(Signal(*row) for row in rng.random((count, 3)).tolist())

    ends = [*np.flatnonzero(ranks).tolist(), len(ranks)]
    return RequestTrace(
        request_id=0,
        prompt_id="p",
        num_prompt_tokens=4,
        max_new_tokens=len(ranks) + num_beyond,
        temperature=1.0,
        finish_reason=FinishReason.EOS if num_beyond else FinishReason.MAX_TOKENS,
        ranks=tuple(ranks),
        signals=signals(len(ranks)),
        tails={position: signals(depth) for position in ends},
        tail_depth=depth,
    )


@settings(max_examples=300, deadline=None)
@given(
    policy=st.one_of(
        st.builds(BySignals, salt=st.integers(0, 1000), does_overlap=st.booleans()),
        st.builds(ConfidenceStop, threshold=st.floats(0, 1), max_length=st.integers(1, 8)),
        st.builds(Pearl, draft_length=st.integers(1, 6)),
        st.builds(FixedLength, draft_length=st.integers(1, 6)),
    ),
    ranks=st.lists(st.sampled_from([0, 0, 0, 1, 2, 5]), min_size=1, max_size=40),
    num_beyond=st.sampled_from([0, 1, 10]),
    seed=st.integers(0, 1000),
)
def test_ranks_tell_what_tokens_would(policy: Policy, ranks: list[int], num_beyond: int, seed: int) -> None:
    trace = trace_of(ranks, num_beyond=num_beyond, seed=seed)
    assert replay(policy, trace) == run_with_tokens(policy, trace)


def test_next_mismatches_by_hand() -> None:
    assert next_mismatches((0, 0, 3, 0, 1, 0)) == [2, 2, 2, 4, 4, 6, 6]


def test_a_policy_whose_questions_the_trace_cannot_answer_is_refused() -> None:
    bare = RequestTrace(7, "p7", 4, 3, 1.0, FinishReason.MAX_TOKENS, (0, 1, 0))
    with pytest.raises(ValueError, match=r"request 7 \(p7\) holds no draft confidences"):
        replay(ConfidenceStop(), bare)
    with pytest.raises(ValueError, match="record with --tail-depth 7"):
        check_answers(trace_of([0, 1], depth=3), ConfidenceStop(max_length=8).needs)
    with pytest.raises(ValueError, match="holds no H-RAD classes"):
        check_answers(bare, Needs(classes=True))


def test_recorded_classes_reach_the_policy_after_each_verification() -> None:
    seen_probs = []

    class Watcher(FixedLength):
        @property
        def needs(self) -> Needs:
            return Needs(classes=True)

        def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
            if not pending:
                seen_probs.append(seen.class_probs)
            return super().draft_more(seen, pending)

    probs = tuple((position / 10, 1 - position / 10, 0.0) for position in range(7))
    trace = RequestTrace(0, "p", 4, 50, 1.0, FinishReason.EOS, (0, 1, 0, 0, 0, 0), class_probs=probs)
    rounds = replay(Watcher(2), trace)
    assert seen_probs == [probs[0], probs[2], probs[5]]
    assert [done.predicted_class for done in rounds] == [1, 0, -1]  # none after the end

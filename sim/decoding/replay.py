"""Trace replay: a recorded sequence answers every what-if exactly.

Under shared noise the target's tokens do not depend on the policy, and a draft token is accepted exactly when it is the
target's token, that is when the target's token has rank 0 in the draft's noisy order; a hedge with fan-out F is hit
exactly when that rank is below F. So the rounds of any policy follow from the ranks alone (and the signals, for policies
that look at them): they are the very rounds that the executor would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from sim.decoding.machine import Branch, Close, Command, DraftTokens, Keep, Look, Reply, Settle, Settled, Submit, Timed
from sim.decoding.policies.base import Needs, Policy, why_other_window
from sim.decoding.world import drive
from traces.schema import UNKNOWN_SIGNAL, RequestTrace, Round, Signal

StepsOf: TypeAlias = Callable[[Branch], int]  # of a branch of a free-running draft: how many steps were done


class TraceWorld:
    """Answers the step machine's commands from one recorded request; it knows outcomes, not times."""

    def __init__(self, trace: RequestTrace, needs: Needs, steps_of: StepsOf | None = None) -> None:
        """steps_of: how far a free-running draft went; ValueError without it for a policy that has one."""
        check_answers(trace, needs)
        if needs.is_timed and steps_of is None:
            raise ValueError(
                "the rounds of a free-running draft depend on times, which are not known here: give num_further=0, or use "
                "simulate, explore or a recorded run."
            )
        self._steps_of = steps_of if needs.is_timed else None
        self.trace = trace
        self._num_tokens = trace.num_tokens
        self._num_alternatives = needs.num_alternatives
        self._signals = trace.signals if needs.signals else None
        self._classes = trace.class_probs if needs.classes else None
        self._mismatches = next_mismatches(trace.ranks)
        self.position = 0  # committed tokens
        self.num_pending = 0
        self.fanout: tuple[int, ...] = ()
        self.num_steps = 0
        self._knows_frontier = False  # whether the draft's law right after the pending tokens is known

    @property
    def first_classes(self) -> tuple[float, float, float] | None:
        """H-RAD's prediction after the prefill."""
        return self._classes[0] if self._classes else None

    def answer(self, command: Command) -> Reply:
        """What came of a command."""
        # Asked some ten times a round: the types are compared as they are, for nothing derives from a command.
        if type(command) is Settle:
            return self._settle()
        if type(command) is Submit:
            self._knows_frontier |= command.num_pending < self.num_pending
            self.num_pending = command.num_pending
            self.fanout, self.num_steps = (), 0
        elif type(command) is Close:
            pass
        elif type(command) is Look:
            self._knows_frontier = True
            return UNKNOWN_SIGNAL if self._signals is None else self._signals_at(self.num_pending, 1)[0]
        elif type(command) is Branch:
            self.fanout, self.num_steps = command.fanout, command.num_steps
            if self._steps_of is not None:
                self.num_steps = self._steps_of(command)
                return self.num_steps
        elif type(command) is DraftTokens:
            first, count = self.num_pending, command.num_tokens
            self.num_pending += count
            self._knows_frontier = False
            return [UNKNOWN_SIGNAL] * count if self._signals is None else self._signals_at(first, count)
        elif type(command) is Keep:
            self.num_pending = command.num_kept
            self._knows_frontier = command.num_kept < self.num_steps
        return None

    def _settle(self) -> Settled:
        start, num_tokens = self.position, self._num_tokens
        stop = min(self._mismatches[start], start + self.num_pending)
        num_accepted = stop - start
        if stop == num_tokens:  # the request ended within the accepted tokens; the verdict's class lies past the end
            self.position = stop
            return Settled(num_accepted, num_accepted, True, -1, False, (), None)
        num_pending, self.num_pending = self.num_pending, 0
        self.position = position = stop + 1
        is_finished = position == num_tokens
        rank = self.trace.ranks[stop]
        is_known = rank < self._num_alternatives and (num_accepted < num_pending or self._knows_frontier)
        self._knows_frontier = False
        is_hit = False
        if self.fanout and not is_finished:
            first = num_accepted < num_pending  # `hedged_ranks`, without making a range
            is_hit = first <= rank < self.fanout[num_accepted] + first
        return Settled(
            num_accepted,
            num_accepted + 1,
            is_finished,
            rank if is_known else -1,
            is_hit,
            tuple(self._signals_at(0, self.num_steps)) if is_hit else (),
            self._classes[position] if self._classes else None,
        )

    def _signals_at(self, offset: int, count: int) -> list[Signal]:
        """Signals of the draft's tokens number offset .. offset + count - 1 after the committed ones."""
        if self._signals is None:
            return [UNKNOWN_SIGNAL] * count
        start = self.position
        mismatch = self._mismatches[start]
        num_on_path = self.trace.num_tokens
        signals = []
        for position in range(start + offset, start + offset + count):
            if position <= mismatch and position < num_on_path:
                signals.append(self._signals[position])
            else:  # after the draft's own wrong token, or past the end of the request
                depth = position - mismatch - (mismatch < num_on_path)
                signals.append(self.trace.tails[mismatch][depth])
        return signals


def next_mismatches(ranks: tuple[int, ...]) -> list[int]:
    """For every position 0..N the first position from there on where the draft's token is wrong; N when there is none."""
    num = len(ranks)
    mismatches = [num] * (num + 1)
    for position in range(num - 1, -1, -1):
        mismatches[position] = position if ranks[position] else mismatches[position + 1]
    return mismatches


def check_answers(trace: RequestTrace, needs: Needs) -> None:
    """Refuse a policy whose questions the trace cannot answer.

    Raises ValueError, which names what is missing: signals, tails, classes (or their window) or ranks.
    """
    where = f"the trace of request {trace.request_id} ({trace.prompt_id})"
    if needs.signals and not trace.signals:
        raise ValueError(
            f"{where} holds no draft confidences, which this policy reads; record it with alignment on, and not as "
            "verified by an engine's rule."
        )
    if needs.signals and needs.tail_depth > trace.tail_depth:
        raise ValueError(
            f"{where} holds {trace.tail_depth} draft tokens after a wrong one, but this policy may look at "
            f"{needs.tail_depth}; use a shorter maximum length or record with --tail-depth {needs.tail_depth}."
        )
    if needs.classes and not trace.class_probs:
        raise ValueError(f"{where} holds no H-RAD classes, which this policy reads; record it with a predictor.")
    if why := why_other_window(needs, trace.class_window):
        raise ValueError(f"{where}: {why}")
    if trace.known_ranks is not None and needs.num_alternatives > trace.known_ranks:
        raise ValueError(
            f"{where} tells only the draft's {trace.known_ranks} best tokens apart, but this policy hedges up to "
            f"{needs.num_alternatives} of them; record the pair with `specbranch record`, or leave such policies out."
        )


def drive_trace(policy: Policy, trace: RequestTrace, steps_of: StepsOf | None = None) -> Iterator[Timed]:
    """`drive` on a recorded request. Raises ValueError where the trace cannot answer the policy's questions."""
    return drive(
        policy,
        TraceWorld(trace, policy.needs, steps_of),
        request_id=trace.request_id,
        max_new_tokens=trace.max_new_tokens,
        num_prompt_tokens=trace.num_prompt_tokens,
    )


def closed_rounds(policy: Policy, trace: RequestTrace, steps_of: StepsOf | None = None) -> list[Close]:
    """Records and ledgers of the rounds that `policy` runs on a recorded request, without times; see `drive_trace`."""
    return [command for command in drive_trace(policy, trace, steps_of) if isinstance(command, Close)]


def replay(policy: Policy, trace: RequestTrace, *, executed: Sequence[Round] = ()) -> list[Round]:
    """The records of `closed_rounds`. executed: rounds that say how far a free-running draft went; others need none."""
    steps_of = steps_in(executed) if policy.needs.is_timed and executed else None
    return [closed.round for closed in closed_rounds(policy, trace, steps_of)]


def steps_in(executed: Sequence[Round]) -> StepsOf:
    """How far the draft went in rounds that were recorded, one after another; as far as it had to where they say nothing that
    it could have done."""
    recorded = iter([round_.num_branch_steps for round_ in executed if round_.num_branches])

    def steps_of(command: Branch) -> int:
        wanted = next(recorded, 0)
        return min(max(wanted, command.num_steps), command.num_steps + command.num_further)

    return steps_of

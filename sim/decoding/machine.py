"""The step machine: one loop of plan, act and settle that runs every decoding method in every world.

`decode` is a generator. It yields commands (draft these tokens, submit, look, branch, settle ...) and is sent what came of
them; it never waits, draws or computes with tokens itself. A *world* (`sim.decoding.world`) answers the commands: real
models, a recorded trace, or next-token tables. Hence one policy object meets the same questions everywhere, and rounds
can be compared field by field. Which forwards a command asks of a model follows from the outcomes alone, so the machine
says it: whoever spends time reads it off the command, and nobody counts lags a second time.

    round:  plan    draft serially, while the policy wants more; submit a prefix
            act     the target verifies  ||  the draft looks one token ahead and extends the hedges, as one batch
            settle  outcome: commit; hedged -> a prefix of that continuation is pending; missed -> nothing is
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias, final

from sim.decoding.draft_cache import DraftCache, Forwards
from sim.decoding.ledger import Ledger
from sim.decoding.policies.base import Hedges, Load, Observation, Policy, Verdict
from traces.schema import RollbackCase, Round, Signal

ClassProbs: TypeAlias = tuple[float, float, float]


@final
class DraftTokens(NamedTuple):
    """Draft this many tokens after the pending ones, one forward each (the first is free if its law is known)."""

    num_tokens: int
    forwards: Forwards


@final
class Submit(NamedTuple):
    """Hand the first `num_pending` drafted tokens to the target; later ones are withdrawn. Verification starts."""

    num_pending: int
    forwards: Forwards


@final
class Look(NamedTuple):
    """Forward the last pending token, so that the draft's law after it is known."""

    forwards: Forwards


@final
class Branch(NamedTuple):
    """Extend every hedge by `num_steps` tokens, all rows as one batch (see `policies.base.Hedges`), and by up to num_further
    more as long as no verdict has come. forwards: of all of them."""

    fanout: tuple[int, ...]
    num_steps: int
    forwards: Forwards
    num_further: int = 0


@final
class Settle(NamedTuple):
    """Wait for the target's verdict and commit it."""


@final
class Keep(NamedTuple):
    """After a hit: the first `num_kept` tokens of its continuation are pending now."""

    num_kept: int


@final
class Close(NamedTuple):
    """The round is over; here are its record and what its record leaves out of its forwards (see `Ledger`)."""

    round: Round
    num_carried: int
    draft_lag: int
    num_withdrawn: int
    look_lag: int

    @property
    def ledger(self) -> Ledger:
        """What the round's times depend on."""
        round_ = self.round
        return Ledger(
            self.num_carried,
            self.draft_lag,
            round_.num_serial,
            self.num_withdrawn,
            round_.num_pending,
            self.look_lag,
            round_.num_branches,
            round_.num_branch_steps,
            round_.num_accepted,
            round_.num_emitted,
            round_.is_hit,
            round_.num_kept,
            round_.is_finished,
        )


_SETTLE = Settle()
# Members of an enum are looked up slowly, and each round asks for one.
_LOST_NOTHING, _LOST_SIBLINGS, _TRIMMED = RollbackCase.NONE, RollbackCase.SIBLINGS, RollbackCase.TRIMMED
_REJECTED, _BRANCH_MISS, _PRE_VERIFY_MISS = (
    RollbackCase.REJECTED,
    RollbackCase.BRANCH_MISS,
    RollbackCase.PRE_VERIFY_MISS,
)
Timed: TypeAlias = DraftTokens | Submit | Look | Branch | Close  # what takes time somewhere
Command: TypeAlias = Timed | Settle | Keep


class Settled(NamedTuple):
    """The outcome of a verification, cut at the request's end.

    num_emitted: num_accepted + 1, or num_accepted when the request ended within the accepted tokens.
    next_rank:   rank of the target's own token in the draft's noisy order at that position; -1 when unknown.
    is_hit:      whether a hedge covered the outcome; never on the last round.
    ahead:       signals of the hit hedge's continuation.
    class_probs: H-RAD's prediction at the last verified position.
    """

    num_accepted: int
    num_emitted: int
    is_finished: bool
    next_rank: int
    is_hit: bool
    ahead: tuple[Signal, ...]
    class_probs: ClassProbs | None


Reply: TypeAlias = list[Signal] | Signal | Settled | Load | int | None


def decode(
    policy: Policy,
    *,
    request_id: int,
    max_new_tokens: int,
    num_prompt_tokens: int = 1,
    class_probs: ClassProbs | None = None,
    load: Load | None = None,
) -> Generator[Command, Any, None]:
    """Decode one request: yields commands, is sent their replies, ends after the last `Close`.

    DraftTokens is answered by a list of the tokens' signals, Look by a signal, Settle by `Settled`, Close by the server's
    load at the next round's start (None where there is no such thing), a Branch with further steps by the number of steps
    that were done, everything else by None.
    class_probs: H-RAD's prediction after the prefill, if there is one. load: of the server when the first round starts.
    Raises ValueError when the policy hedges more or fewer outcomes than there are.

    (Any: what is sent hangs on the command, `Reply`, and checking it would cost a round a hundredth of its time.)
    One function, long as it is: plan, act and settle in their order are the method, and read best from top to bottom.
    """
    pending: tuple[Signal, ...] = ()
    frontier: Signal | None = None  # the draft's law right after `pending`, when it costs no forward
    remaining, position, index = max_new_tokens, 0, 0
    submitted = accepted = last_submitted = last_accepted = 0
    was_hit, memory = False, None
    needs = policy.needs
    predicts, learns = needs.classes, needs.learns
    cache = DraftCache(num_prompt_tokens)

    while True:
        seen = Observation(
            remaining, index, submitted, accepted, last_submitted, last_accepted, was_hit, class_probs, memory, load
        )
        # Plan: draft while the target waits. The target's own token is always one of the remaining, hence the - 1.
        num_pending = carried = len(pending)
        forwards = unused = look_lag = 0
        draft_lag = cache.num_sequence + num_pending - cache.num_cached
        while (more := policy.draft_more(seen, pending)) > 0:
            room = remaining - 1 - num_pending
            if more > room:
                more = room
                if more <= 0:
                    break
            signals: list[Signal] = yield DraftTokens(more, cache.draft(more))
            forwards += more if frontier is None else more - 1
            frontier = None
            pending = (*pending, *signals)
            num_pending += more
        num_serial = num_pending - carried
        if num_serial:
            kept = policy.keep(seen, pending)
            if kept < num_pending:
                kept = max(kept, 0)
                unused = num_pending - kept
                frontier, pending, num_pending = pending[kept], pending[:kept], kept

        # Act: the target verifies; the draft works ahead on the outcomes that the policy hedges.
        num_withdrawn = carried + num_serial - num_pending
        yield Submit(num_pending, cache.submit(num_pending))
        fanout: tuple[int, ...] = ()
        num_steps = num_rows = 0
        if remaining > 1 and policy.looks(seen, pending):
            if frontier is None:
                look = cache.look()
                look_lag = look.first_tokens
                frontier = yield Look(look)
                assert frontier is not None, "a look is answered by a signal"
                forwards += 1
            fanout, num_steps, num_further = _useful(policy.hedge(seen, pending, frontier), num_pending, remaining)
            num_rows = sum(fanout)
            if num_rows:
                longest = num_steps + num_further
                done = yield Branch(fanout, num_steps, cache.branch(num_rows, longest), num_further)
                if num_further:
                    assert num_steps <= done <= longest, (
                        "a free-running draft does the steps that it has to, and some more"
                    )
                    num_steps = cache.num_hedged = done
                forwards += num_steps

        # Settle.
        settled: Settled = yield _SETTLE
        num_accepted, num_emitted, is_finished, next_rank, is_hit, ahead, class_probs = settled
        cache.settle(num_accepted, num_emitted, is_hit)
        submitted, last_submitted = submitted + num_pending, num_pending
        accepted, last_accepted = accepted + num_accepted, num_accepted
        was_hit = is_hit
        if learns:
            memory = policy.learn(memory, Verdict(num_pending, num_accepted, is_hit))
        position, remaining, index = position + num_emitted, remaining - num_emitted, index + 1

        num_row_tokens = num_rows * (1 + num_steps)
        rejected = sibling = trimmed = kept = 0
        if num_emitted > num_accepted:
            rejected = num_pending - num_accepted
        else:
            unused += num_pending - num_accepted
        if is_hit:
            seen = Observation(
                remaining, index, submitted, accepted, last_submitted, last_accepted, was_hit, class_probs, memory, load
            )
            kept = _within(policy.keep(seen, ahead), min(len(ahead), remaining - 1))
            cache.keep(kept)
            yield Keep(kept)
            sibling, trimmed = num_row_tokens - 1 - num_steps, num_steps - kept
            pending, frontier = ahead[:kept], ahead[kept] if kept < len(ahead) else None
        else:
            unused += num_row_tokens
            pending, frontier = (), None

        case = _rollback_case(num_pending, rejected, num_rows, is_hit, sibling, trimmed, is_finished)
        predicted_class = class_probs.index(max(class_probs)) if predicts and class_probs else -1
        # By position, in the order of the record's fields: keywords would cost a round a tenth of its time.
        record = Round(
            request_id,
            index - 1,
            position - num_emitted,
            num_serial,
            num_pending,
            num_accepted,
            num_emitted,
            fanout,
            num_rows,
            num_steps,
            num_serial + num_row_tokens,
            forwards,
            next_rank,
            is_hit,
            kept,
            rejected,
            sibling,
            trimmed,
            unused,
            case,
            predicted_class,
            is_finished,
        )
        load = yield Close(record, carried, draft_lag, num_withdrawn, look_lag)
        if is_finished:
            return


def _within(count: int, most: int) -> int:
    """A policy's answer, cut to what there is."""
    return max(0, min(count, most))


def _useful(hedges: Hedges, num_pending: int, remaining: int) -> tuple[tuple[int, ...], int, int]:
    """Hedges without those that could not be used: after n accepted tokens `remaining - n - 1` may still be emitted."""
    fanout, num_steps, num_further = hedges
    if not fanout:
        return (), 0, 0
    if len(fanout) != num_pending + 1:
        raise ValueError(
            f"a policy hedged {len(fanout)} outcomes for {num_pending} pending tokens; "
            f"give one fan-out for each number of accepted tokens, 0 to {num_pending}."
        )
    if remaining < num_pending + 2:
        fanout = tuple(count if remaining - n - 1 >= 1 else 0 for n, count in enumerate(fanout))
    for first, count in enumerate(fanout):
        if count:
            most = max(0, remaining - first - 2)
            num_steps = _within(num_steps, most)
            return fanout, num_steps, num_further and _within(num_further, most - num_steps)
    return (), 0, 0


def _rollback_case(
    num_pending: int, rejected: int, num_rows: int, is_hit: bool, sibling: int, trimmed: int, is_finished: bool
) -> RollbackCase:
    """Which of R0 to R4 a round was; a hit that both trims and drops siblings counts as trimmed."""
    if is_hit:
        return _TRIMMED if trimmed else _LOST_SIBLINGS if sibling else _LOST_NOTHING
    if rejected:
        return _REJECTED
    if num_rows and not is_finished:
        return _BRANCH_MISS if num_pending else _PRE_VERIFY_MISS
    return _LOST_NOTHING

"""The questions a policy answers, and what it may know when it does.

A decoding method is a choice of which outcomes (number accepted, next token) to draft for while the target verifies,
how far, how much of the result to submit next, and what to do on an outcome nobody hedged. `sim.decoding.machine` asks; the
simulator, trace replay and the executor put the very same frozen object to the very same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from traces.schema import Signal


class Load(NamedTuple):
    """How busy the server of a request is, where many are served at once.

    num_running, num_waiting: requests in the batch and in the queue. kv_share: of the memory for keys and values that is
    taken, in [0, 1].
    """

    num_running: int
    num_waiting: int
    kv_share: float


class Observation(NamedTuple):
    """What a policy may know at any question. No token ids, no tensors, no clock.

    num_remaining: tokens the request may still emit. num_rounds: rounds done.
    num_submitted, num_accepted: draft tokens so far. last_submitted, last_accepted: of the last round.
    was_hit:     whether the last outcome was hedged (False before the first round).
    class_probs: H-RAD's (reject, confidence, accept) at the last verified position, if a predictor runs.
    memory:      what `Policy.learn` made of all verdicts so far; None at first.
    load:        of the server at the round's start; None where a request has the devices to itself.
    """

    num_remaining: int
    num_rounds: int
    num_submitted: int
    num_accepted: int
    last_submitted: int
    last_accepted: int
    was_hit: bool
    class_probs: tuple[float, float, float] | None
    memory: Any  # each policy gives its own immutable type
    load: Load | None = None


class Hedges(NamedTuple):
    """Outcomes to draft for: at n accepted tokens the `fanout[n]` best next tokens of the draft, each `num_steps` further.

    fanout has one entry for each number of accepted tokens 0..L. For n < L the pending token itself is excluded (it
    would have been accepted); for n = L nothing is. num_further: steps more that the draft may go on for as long as the
    verdict has not come (a free-running draft); how many it was is known only in time.
    """

    fanout: tuple[int, ...]
    num_steps: int
    num_further: int = 0


def hedged_ranks(fan_out: int, *, is_pending_known: bool) -> range:
    """Ranks in the draft's order that a fan-out hedges at one number of accepted tokens: at n < L the pending token itself
    (rank 0) is left out, for it would have been accepted.

    >>> hedged_ranks(2, is_pending_known=True), hedged_ranks(2, is_pending_known=False)
    (range(1, 3), range(0, 2))
    """
    first = int(is_pending_known)
    return range(first, first + fan_out)


NO_HEDGES = Hedges((), 0)


class Needs(NamedTuple):
    """What a policy wants measured: skipped otherwise, because it costs time on the draft's path.

    signals: confidences of drafted tokens. num_alternatives: how many best tokens of each draft law must be kept.
    tail_depth: how many tokens after a wrong one it may look at (a replayed trace must hold them).
    classes: H-RAD's class probabilities after each verification. class_window: how many draft tokens the third class says
    are all accepted (the longest window of the policy); 0 where any predictor will do.
    drafts: whether the draft model is used at all (its prefill is skipped otherwise).
    learns: whether `Policy.learn` is asked after each verdict.
    is_timed: whether its rounds depend on times (a free-running draft): replay must be told how far each one went.
    """

    signals: bool = False
    num_alternatives: int = 1
    tail_depth: int = 0
    classes: bool = False
    class_window: int = 0
    drafts: bool = True
    learns: bool = False
    is_timed: bool = False


def why_other_window(needs: Needs, class_window: int) -> str:
    """Why classes of a predictor, or of a trace, cannot steer a policy: one line, empty where they can.

    Three classes tell nothing of another window ("some" of 4 may be all of 2, or none beyond), so that they cannot be
    rescaled. class_window: the gamma of the predictor's labels, 0 where nobody recorded it.
    """
    if not (needs.classes and needs.class_window and class_window) or needs.class_window == class_window:
        return ""
    return (
        f"this policy's window has {needs.class_window} draft tokens, but the H-RAD predictor's classes speak of "
        f"{class_window}; take draft_length={class_window} (and no longer window after a miss), or train a predictor for "
        f"{needs.class_window} (specbranch hrad collect --draft-length {needs.class_window}, then hrad train)."
    )


class Verdict(NamedTuple):
    """What verification brought, as `Policy.learn` sees it."""

    num_submitted: int
    num_accepted: int
    was_hit: bool


@runtime_checkable
class Policy(Protocol):
    """Chooses. Same inputs, same choice: no clock, no randomness, no state of its own (frozen dataclasses)."""

    @property
    def needs(self) -> Needs:
        """What must be measured for this policy."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether it ever drafts while the target verifies, so that the draft must look one token ahead."""
        ...

    def looks(self, seen: Observation, pending: Sequence[Signal]) -> bool:
        """Whether to do so in this round, while `pending` is verified; `hedge` is asked only then."""
        ...

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        """How many more tokens to draft before the target is asked; asked again after these, until it says 0."""
        ...

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        """How many of the drafted tokens to submit: a prefix. The first one left out becomes the branch point."""
        ...

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        """Which outcomes to draft for during the verification of `pending`; `frontier` is the law right after it."""
        ...

    def learn(self, memory: Any, verdict: Verdict) -> Any:
        """The memory after one more verdict; whatever it returns arrives in `Observation.memory`."""
        ...


@dataclass(frozen=True)
class Defaults:
    """The answers of a policy that does nothing: draft nothing, submit all, hedge nothing, learn nothing."""

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def overlaps(self) -> bool:
        return False

    def looks(self, seen: Observation, pending: Sequence[Signal]) -> bool:
        return self.overlaps

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return len(drafted)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return NO_HEDGES

    def learn(self, memory: Any, verdict: Verdict) -> Any:
        return None


# A setting that came later: labels leave it out at its default, so that those of older runs stay the same.
UNNAMED_AT_DEFAULT = {"is_unnamed_at_default": True}


def further_setting() -> int:
    """The setting of a free-running draft, 0 by default: see `Hedges.num_further`."""
    return field(default=0, metadata=UNNAMED_AT_DEFAULT)


def check_at_least(name: str, value: float, least: float, *, instead: str) -> None:
    """Refuse a setting below `least`; `instead` tells the reader what to use."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, but got {value}; {instead}")

"""Many policies over many recorded requests at once: every (policy, request) is a lane, all lanes step round by round.

The array form of machine and replay: the same rounds, without Python work for each token or each policy. A
test holds both equal. Positions here are absolute: all traces lie behind one another in one array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, confidence
from sim.decoding.replay import next_mismatches
from traces.schema import RequestTrace, Signal

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]


class TraceArrays:
    """Traces behind one another, each with one extra entry for its end.

    starts, ends: (requests,) absolute position of the first and of the last + 1 token. ranks, mismatches: (positions,).
    """

    def __init__(self, traces: Sequence[RequestTrace]) -> None:
        self.traces = traces
        lengths = np.array([trace.num_tokens + 1 for trace in traces], dtype=np.int64)
        self.starts: Ints = np.cumsum(lengths) - lengths
        self.ends: Ints = self.starts + lengths - 1
        self.num_positions = int(lengths.sum())
        self.ranks: Ints = np.concatenate([np.array([*trace.ranks, 0], dtype=np.int64) for trace in traces])
        self.mismatches: Ints = np.concatenate(
            [start + np.array(next_mismatches(trace.ranks)) for start, trace in zip(self.starts, traces, strict=True)]
        )
        self._runs: dict[ConfidenceSignal, Floats] = {}
        self.guesses: dict[tuple[ConfidenceSignal, float, float], Floats] = {}  # see `sim.sweep.guess_arrays`

    @cached_property
    def _signals(self) -> _SignalArrays:
        return _SignalArrays(self.traces, self.starts)

    def runs(self, kind: ConfidenceSignal, width: int) -> Floats:
        """(positions, at least width): confidence of the draft's tokens 0, 1, ... after each number of committed ones.

        On the path while the draft agrees with it and one token further, then the recorded tail; NaN beyond that.
        """
        known = self._runs.get(kind)
        if known is None or known.shape[1] < width:
            known = self._runs[kind] = self._build_runs(kind, width)
        return known

    def classes(self) -> Ints:
        """(positions,) H-RAD's most probable class after each number of committed tokens; -1 where unrecorded."""
        classes = np.full(self.num_positions, -1, dtype=np.int64)
        for start, trace in zip(self.starts.tolist(), self.traces, strict=True):
            if trace.class_probs:
                classes[start : start + trace.num_tokens + 1] = np.argmax(trace.class_probs, axis=1)
        return classes

    def _build_runs(self, kind: ConfidenceSignal, width: int) -> Floats:
        known = self._signals
        on_path = np.full(self.num_positions, np.nan)
        on_path[known.path_at] = known.confidences_of(known.path, kind)
        tails = np.full((self.num_positions, max(width, 1)), np.nan)
        is_within = known.tail_depth < width
        tails[known.tail_at[is_within], known.tail_depth[is_within]] = known.confidences_of(
            known.tails[is_within], kind
        )
        own_end = np.repeat(self.ends, self.ends - self.starts + 1)[:, None]
        mismatches = self.mismatches[:, None]
        tokens = np.arange(self.num_positions)[:, None] + np.arange(width)
        is_on_path = (tokens <= mismatches) & (tokens < own_end)
        depths = np.clip(tokens - mismatches - (mismatches < own_end), 0, width - 1)
        inside = np.minimum(tokens, self.num_positions - 1)
        runs: Floats = np.where(is_on_path, on_path[inside], tails[mismatches, depths])
        return runs


class _SignalArrays:
    """The recorded signals of all traces, made arrays once: (signals, 3), as they follow in `traces.schema.Signal`.

    path_at, tail_at: absolute position of each; of a tail's that of its start, and tail_depth from there.
    """

    def __init__(self, traces: Sequence[RequestTrace], starts: Ints) -> None:
        on_path = [
            (start + np.arange(trace.num_tokens), trace.signals)
            for start, trace in zip(starts, traces, strict=True)
            if trace.signals
        ]
        tails = [
            (start + position, signals)
            for start, trace in zip(starts.tolist(), traces, strict=True)
            for position, signals in trace.tails.items()
        ]
        lengths = np.array([len(signals) for _, signals in tails], dtype=np.int64)
        self.path_at = np.concatenate([at for at, _ in on_path]) if on_path else np.zeros(0, dtype=np.int64)
        self.path = _rows_of([signals for _, signals in on_path])
        self.tail_at = np.repeat(np.array([at for at, _ in tails], dtype=np.int64), lengths)
        self.tail_depth = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.tails = _rows_of([signals for _, signals in tails])

    @staticmethod
    def confidences_of(rows: Floats, kind: ConfidenceSignal) -> Floats:
        """(signals, 3) -> (signals,)."""
        columns: Any = rows.T  # Any: `confidence` is written for one signal, and maps over arrays
        values: Floats = confidence(Signal(*columns), kind)  # type: ignore[assignment]  # of arrays it gives an array
        return values


def _rows_of(signals: Sequence[Sequence[Signal]]) -> Floats:
    numbers = chain.from_iterable(chain.from_iterable(signals))  # far faster than an array of tuples
    return np.fromiter(numbers, dtype=float).reshape(-1, len(Signal._fields))


@dataclass
class Lanes:
    """State of the lanes that still run, one entry each.

    lane: index in the whole sweep. row: of the rule's settings. position, end, limit: absolute; limit is where the
    request would reach its maximum. num_carried: pending tokens left by the last hit. lag: see `shapes.DraftCache`.
    memory: what a rule remembers, one array a name.
    """

    lane: Ints
    row: Ints
    position: Ints
    end: Ints
    limit: Ints
    num_carried: Ints
    lag: Ints
    was_hit: Bools
    memory: dict[str, Any] = field(default_factory=dict)

    def keep(self, chosen: Bools) -> None:
        """Drop the lanes that are not chosen."""
        for entry in fields(self):
            if entry.name != "memory":
                setattr(self, entry.name, getattr(self, entry.name)[chosen])
        self.memory = {name: values[chosen] for name, values in self.memory.items()}


class HedgeArrays(NamedTuple):
    """`policies.base.Hedges` of all lanes.

    at_end: (lanes,) branches when all pending tokens are accepted. num_steps: (lanes,).
    at_rejection: (lanes, width) branches at each smaller number of accepted tokens, 0 from the pending count on.
    """

    at_end: Ints
    num_steps: Ints
    at_rejection: Ints | None = None


class ArrayRule(Protocol):
    """A policy in array form, for many settings at once (`Lanes.row` says which): the same answers, as arrays."""

    overlaps: bool

    def num_wanted(self, lanes: Lanes) -> Ints:
        """Pending tokens wanted before the target is asked, carried ones included (`Policy.draft_more`, to its end)."""
        ...

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        """`Policy.keep` after serial drafting; None for all."""
        ...

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        """`Policy.hedge`; asked only when `overlaps`."""
        ...

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        """`Policy.keep` after a hit, lanes standing after the outcome; None for all."""
        ...

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        """`Policy.learn`: update `lanes.memory`; `lanes.was_hit` is set already."""
        ...


class RoundArrays(NamedTuple):
    """Rounds of many lanes in the words of `traces.schema.Round`; from these follow all counts and times.

    position: absolute. Flags are 0 or 1.
    num_carried, draft_lag: pending tokens and the draft's lag at the start. look_lag: tokens of the look; 0 without.
    num_withdrawn: drafted serially or carried, but not submitted.
    """

    lane: Ints
    position: Ints
    num_carried: Ints
    draft_lag: Ints
    num_serial: Ints
    num_withdrawn: Ints
    num_pending: Ints
    look_lag: Ints
    num_branches: Ints
    num_branch_steps: Ints
    num_accepted: Ints
    num_emitted: Ints
    is_hit: Ints
    num_kept: Ints
    is_finished: Ints


def step_all(rule: ArrayRule, lanes: Lanes, arrays: TraceArrays, emit: Callable[[RoundArrays], None]) -> None:
    """Run all lanes to their ends; `emit` gets the rounds, one of each running lane at a time."""
    while len(lanes.lane):
        rounds = _step(rule, lanes, arrays)
        emit(rounds)
        if rounds.is_finished.any():
            lanes.keep(rounds.is_finished == 0)


def _step(rule: ArrayRule, lanes: Lanes, arrays: TraceArrays) -> RoundArrays:
    """One round of every lane: plan, act, settle, as in `sim.decoding.machine.decode`, and one function as that is."""
    position, carried, lag = lanes.position, lanes.num_carried, lanes.lag
    most = lanes.limit - position - 1  # the target's own token is always one of the remaining
    none = np.zeros_like(position)

    # Plan.
    serial = np.maximum(np.minimum(rule.num_wanted(lanes), most) - carried, 0)
    drafted = carried + serial
    draft_lag = lag
    lag = np.where(serial > 0, 1, lag)
    kept = rule.num_submitted(lanes, drafted)
    # A policy is asked for a prefix only after it has drafted serially.
    pending = drafted if kept is None else np.where(serial > 0, np.clip(kept, 0, drafted), drafted)
    withdrawn = drafted - pending
    if kept is not None:
        lag = np.where(withdrawn > 0, 0, lag)

    # Act.
    stop = np.minimum(arrays.mismatches[position], position + pending)
    accepted = stop - position
    looks = rows = steps = none
    hit = np.zeros(len(position), dtype=bool)
    ended = stop == lanes.end
    emitted = accepted + ~ended
    after = position + emitted
    finished = after == lanes.end
    if rule.overlaps:
        may_hedge = most > 0
        looks = np.where(may_hedge, lag, 0)
        lag = np.where(may_hedge, 0, lag)
        rows, steps, covered = _useful(rule.hedge(lanes, pending), pending, accepted, most)
        # `hedged_ranks`, of arrays: after a rejection ranks 1 to F are hedged, at the end 0 to F - 1.
        hit = (arrays.ranks[stop] < covered + (accepted < pending)) & ~finished

    # Settle.
    lanes.was_hit, lanes.position = hit, after
    rule.learn(lanes, pending, accepted)
    ahead = np.where(hit, steps, 0)
    kept = rule.num_kept(lanes, ahead) if rule.overlaps else None
    ahead_kept = np.minimum(ahead, lanes.limit - after - 1)
    if kept is not None:
        ahead_kept = np.minimum(ahead_kept, kept)
    lanes.num_carried = np.maximum(ahead_kept, 0)
    missed_lag = 1 + np.maximum(0, lag - (pending - accepted))
    lanes.lag = np.where(hit, (lanes.num_carried == steps).astype(np.int64), missed_lag)
    return RoundArrays(
        lanes.lane,
        position,
        carried,
        draft_lag,
        serial,
        withdrawn,
        pending,
        looks,
        rows,
        steps,
        accepted,
        emitted,
        hit.astype(np.int64),
        lanes.num_carried,
        finished.astype(np.int64),
    )


def _useful(hedges: HedgeArrays, pending: Ints, accepted: Ints, most: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows, steps and branches at the actual number accepted, without hedges that could not be used (see the machine)."""
    at_end, num_steps, at_rejection = hedges
    at_end = np.where(most > pending, at_end, 0)
    is_rejected = accepted < pending
    if at_rejection is None:
        rows = at_end
        covered = np.where(is_rejected, 0, at_end)
        first = pending
    else:
        counts = np.where(np.arange(at_rejection.shape[1]) < np.minimum(pending, most)[:, None], at_rejection, 0)
        rows = counts.sum(axis=1) + at_end
        at_accepted = counts[np.arange(len(pending)), np.minimum(accepted, counts.shape[1] - 1)]
        covered = np.where(is_rejected, at_accepted, at_end)
        first = np.where(counts.any(axis=1), np.argmax(counts > 0, axis=1), pending)
    steps = np.where(rows > 0, np.maximum(np.minimum(num_steps, most - first - 1), 0), 0)
    return rows, steps, covered

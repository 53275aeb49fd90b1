"""Sweeps: thousands of policies over the same recorded requests, with the rounds and times of the SimPy engine.

Rounds come from the lockstep replay (or, for a policy without an array form, from the step machine), times from mean
latencies: what `sim.engine.simulate` gives with one stream, without a random generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.decoding.machine import Close
from sim.decoding.policies.base import Policy
from sim.decoding.replay import check_answers, closed_rounds, steps_in
from sim.engine import simulate
from sim.latency.base import Conditions, LatencyModel
from sim.sweep.lockstep import Floats, Ints, Lanes, RoundArrays, TraceArrays, step_all
from sim.sweep.rules import ARRAY_RULES
from sim.sweep.timer import RoundTimer
from traces.fits.interference import Interference
from traces.metrics.counts import Summary
from traces.schema import RequestTrace

ROUNDS_AT_ONCE = 1 << 14  # that are timed together: enough to hide the cost of calls, few enough for the caches
_FEWEST_LANES = 4  # below this the step machine is faster than arrays

_COUNTED = (
    "num_rounds",
    "num_emitted",
    "num_submitted",
    "num_accepted",
    "num_rejected",
    "num_drafted",
    "num_lost",
    "num_draft_forwards",
    "num_hedged_rounds",
    "num_hits",
)


@dataclass(frozen=True)
class Sweep:
    """Sums of every policy on every request.

    counts: name of `traces.metrics.counts.Counts` -> (policies, requests). Seconds are (policies, requests), prefill_s is
    (requests,). peak_kv_tokens: (policies,) largest number of cache entries beyond the committed tokens, pending ones and
    all rows of the branches. rounds: all rounds in the order of lanes (policy major) and positions, when they were asked
    for.
    """

    policies: tuple[Policy, ...]
    counts: dict[str, Ints]
    decode_s: Floats
    draft_busy_s: Floats
    target_busy_s: Floats
    prefill_s: Floats
    peak_kv_tokens: Ints
    rounds: RoundArrays | None = None

    @property
    def decode_tokens_per_s(self) -> Floats:
        """(policies,) emitted tokens / decode time, requests one after another."""
        speeds: Floats = self.counts["num_emitted"].sum(axis=1) / self.decode_s.sum(axis=1)
        return speeds

    def summary(self, policy_index: int) -> Summary:
        """One policy in the metrics of a run."""
        decode_s = float(self.decode_s[policy_index].sum())
        return Summary(
            **{name: int(values[policy_index].sum()) for name, values in self.counts.items()},
            num_requests=len(self.prefill_s),
            total_s=decode_s + float(self.prefill_s.sum()),
            decode_s=decode_s,
            draft_busy_s=float(self.draft_busy_s[policy_index].sum()),
            target_busy_s=float(self.target_busy_s[policy_index].sum()),
        )


def sweep(
    policies: Sequence[Policy],
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    takes_turns: bool = False,
    interference: Interference | None = None,
    record_rounds: bool = False,
    arrays: TraceArrays | None = None,
) -> Sweep:
    """All policies on all requests, which run one after another; see `sim.engine.simulate` for takes_turns
    and interference.

    arrays: of these traces, for a caller who sweeps them more than once.
    """
    for needs in {policy.needs for policy in policies}:
        for trace in traces:
            check_answers(trace, needs)
    arrays = arrays or TraceArrays(traces)
    timers = {
        kind: RoundTimer(latency.under(kind), traces, takes_turns=takes_turns, interference=interference)
        for kind in {Conditions.of(policy) for policy in policies}
    }
    sums = _Sums(policies, traces, arrays, next(iter(timers.values())), record_rounds)
    # Policies of one type step together; of these, those apart that overlap and those that do not.
    kinds: dict[tuple[type[Policy], bool, Conditions], list[int]] = {}
    for index, policy in enumerate(policies):
        conditions = Conditions.of(policy)
        kinds.setdefault((type(policy), policy.overlaps, conditions), []).append(index)
    for (kind, _, conditions), chosen in kinds.items():
        sums.use(timers[conditions])
        timed = [index for index in chosen if policies[index].needs.is_timed]
        for index in timed:  # how far the draft goes hangs on times: ask the engine
            for request, trace in enumerate(traces):
                run = simulate(
                    policies[index],
                    [trace],
                    latency,
                    takes_turns=takes_turns,
                    interference=interference,
                    record_ops=False,
                )
                lane = index * len(traces) + request
                rounds = closed_rounds(policies[index], trace, steps_in([round_ for round_, _ in run.rounds]))
                sums.add(round_arrays(rounds, lane, int(arrays.starts[request])))
        chosen = [index for index in chosen if index not in timed]
        if not chosen:
            continue
        if kind in ARRAY_RULES and len(chosen) * len(traces) >= _FEWEST_LANES:
            rule = ARRAY_RULES[kind]([policies[index] for index in chosen], arrays)
            step_all(rule, lanes_of(chosen, arrays), arrays, sums.add)
        else:
            for index in chosen:
                for request, trace in enumerate(traces):
                    rounds = closed_rounds(policies[index], trace)
                    lane = index * len(traces) + request
                    sums.add(round_arrays(rounds, lane, int(arrays.starts[request])))
    return sums.result()


def lanes_of(chosen: Sequence[int], arrays: TraceArrays) -> Lanes:
    """The lanes of some policies, at the start of every request."""
    num_requests = len(arrays.starts)
    request = np.tile(np.arange(num_requests), len(chosen))
    limits = arrays.starts + np.array([trace.max_new_tokens for trace in arrays.traces])
    return Lanes(
        lane=np.repeat(np.array(chosen) * num_requests, num_requests) + request,
        row=np.repeat(np.arange(len(chosen)), num_requests),
        position=arrays.starts[request],
        end=arrays.ends[request],
        limit=limits[request],
        num_carried=np.zeros(len(request), dtype=np.int64),
        lag=np.ones(len(request), dtype=np.int64),
        was_hit=np.zeros(len(request), dtype=bool),
    )


def round_arrays(closed: Sequence[Close], lane: int, start: int) -> RoundArrays:
    """Rounds of the step machine as arrays; start: the request's first absolute position."""
    rows = [(lane, start + command.round.position, *command.ledger) for command in closed]
    return RoundArrays(*np.array(rows, dtype=np.int64).T)


@dataclass
class _Sums:
    """Collects rounds, and counts and times them in large pieces."""

    policies: Sequence[Policy]
    traces: Sequence[RequestTrace]
    arrays: TraceArrays
    timer: RoundTimer
    record_rounds: bool
    waiting: list[RoundArrays] = field(default_factory=list)
    recorded: list[RoundArrays] = field(default_factory=list)
    num_waiting: int = 0

    def __post_init__(self) -> None:
        num_lanes = len(self.policies) * len(self.traces)
        self.counts = {name: np.zeros(num_lanes, dtype=np.int64) for name in _COUNTED}
        self.seconds = np.zeros((3, num_lanes))  # decode, draft busy, target busy
        self.peaks = np.zeros(len(self.policies), dtype=np.int64)

    def use(self, timer: RoundTimer) -> None:
        """Time the rounds to come with another timer."""
        self.flush()
        self.timer = timer

    def add(self, rounds: RoundArrays) -> None:
        self.waiting.append(rounds)
        self.num_waiting += len(rounds.lane)
        if self.num_waiting >= ROUNDS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if not self.num_waiting:
            return
        rounds = RoundArrays(*(np.concatenate(column) for column in zip(*self.waiting, strict=True)))
        self.waiting, self.num_waiting = [], 0
        if self.record_rounds:
            self.recorded.append(rounds)
        # Added one by one, so that no digit hangs on which rounds are flushed together.
        for name, counts in _counts_of(rounds).items():
            np.add.at(self.counts[name], rounds.lane, counts.astype(np.int64, copy=False))
        held = rounds.num_pending + rounds.num_branches * (1 + rounds.num_branch_steps)
        np.maximum.at(self.peaks, rounds.lane // len(self.traces), held)
        request = rounds.lane % len(self.traces)
        times = self.timer.times_of(rounds, request, rounds.position - self.arrays.starts[request])
        for total, values in zip(self.seconds, times, strict=True):
            np.add.at(total, rounds.lane, values)

    def result(self) -> Sweep:
        self.flush()
        shape = len(self.policies), len(self.traces)
        rounds = None
        if self.recorded:
            columns = [np.concatenate(column) for column in zip(*self.recorded, strict=True)]
            order = np.lexsort((columns[1], columns[0]))
            rounds = RoundArrays(*(column[order] for column in columns))
        decode_s, draft_busy_s, target_busy_s = (values.reshape(shape) for values in self.seconds)
        return Sweep(
            policies=tuple(self.policies),
            counts={name: values.reshape(shape) for name, values in self.counts.items()},
            decode_s=decode_s,
            draft_busy_s=draft_busy_s,
            target_busy_s=target_busy_s,
            prefill_s=self.timer.prefill_s,
            peak_kv_tokens=self.peaks,
            rounds=rounds,
        )


def _counts_of(rounds: RoundArrays) -> dict[str, Ints]:
    """What each round adds to the counts."""
    row_tokens = rounds.num_branches * (1 + rounds.num_branch_steps)
    num_drafted = rounds.num_serial + row_tokens
    unaccepted = rounds.num_pending - rounds.num_accepted
    from_rows = np.where(rounds.is_hit == 1, row_tokens - 1 - rounds.num_kept, row_tokens)
    return {
        "num_rounds": np.ones_like(rounds.lane),
        "num_emitted": rounds.num_emitted,
        "num_submitted": rounds.num_pending,
        "num_accepted": rounds.num_accepted,
        "num_rejected": unaccepted * (rounds.num_emitted > rounds.num_accepted),
        "num_drafted": num_drafted,
        "num_lost": rounds.num_withdrawn + unaccepted + from_rows,
        "num_draft_forwards": num_draft_forwards(rounds),
        "num_hedged_rounds": (rounds.num_branches > 0) & (rounds.is_finished == 0),
        "num_hits": rounds.is_hit,
    }


def num_draft_forwards(rounds: RoundArrays) -> Ints:
    """Forwards of the draft: serial tokens (the first free without a lag), the look, and the steps of the branches."""
    serial = rounds.num_serial - ((rounds.num_serial > 0) & (rounds.draft_lag == 0))
    steps: Ints = serial + (rounds.look_lag > 0) + rounds.num_branch_steps * (rounds.num_branches > 0)
    return steps

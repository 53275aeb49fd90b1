"""One task of an exploration: some policies on some traces, timed in every scenario. Runs in any process, on any
machine.

Rounds do not depend on times, so policies are replayed once and timed once for each scenario.
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.explore.work.engine_runs import simulated_requests
from analysis.tuning.measured import typical_context
from sim.decoding.policies.base import Policy
from sim.latency.base import Conditions, LatencyModel
from sim.latency.placement import Placement, adjusted
from sim.sweep.lockstep import RoundArrays, TraceArrays
from sim.sweep.sweep import ROUNDS_AT_ONCE, sweep
from sim.sweep.timer import RoundTimer
from traces.schema import RequestTrace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SECONDS = ("decode_s", "draft_busy_s", "target_busy_s")
COUNTS = ("num_rounds", "num_emitted", "num_drafted", "num_lost", "num_draft_forwards", "num_submitted", "num_rejected")


@dataclass(frozen=True)
class Timing:
    """What changes times and nothing else: the placement, and target / draft forward (None: as calibrated)."""

    placement: Placement = field(default_factory=Placement)
    cost_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What policies are tried on. seed: None for mean latencies, otherwise of the latency draws (shared by
    policies).
    """

    traces: tuple[RequestTrace, ...]
    latency: LatencyModel
    timings: tuple[Timing, ...]
    seed: int | None = None

    @cached_property
    def arrays(self) -> TraceArrays:
        """The traces for sweeps: made once, since every task of a worker needs them."""
        return TraceArrays(self.traces)

    def packed(self) -> Packed:
        """For the way to a worker (never for the disk)."""
        data = zlib.compress(pickle.dumps(replace(self)), 1)  # a copy holds no arrays: a worker makes its own
        return Packed(hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True)
class Packed:
    """A workload on its way. digest: of the data, by which a worker knows what it has unpacked already."""

    digest: str
    data: bytes = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """counts: name -> (policies, requests). seconds: name -> (timings, policies, requests). peak_kv_tokens: (policies,)
    largest number of cache entries beyond the committed tokens: pending ones and all rows of the branches."""

    policies: tuple[Policy, ...]
    counts: dict[str, Ints]
    seconds: dict[str, Floats]
    peak_kv_tokens: Ints


@lru_cache(maxsize=4)
def unpacked(packed: Packed) -> Workload:
    """What `Workload.packed` gave; a worker unpacks it once."""
    workload: Workload = pickle.loads(zlib.decompress(packed.data))  # this program's own coordinator sent them
    return workload


def evaluate_packed(packed: Packed, policies: tuple[Policy, ...]) -> Evaluated:
    """`evaluate` as a task for a worker."""
    return evaluate(unpacked(packed), policies)


def evaluate(workload: Workload, policies: Sequence[Policy]) -> Evaluated:
    """Some policies on a workload."""
    if workload.seed is not None:
        return _evaluate_drawn(policies, workload)
    traces, latency = workload.traces, workload.latency
    others = [index for index, timing in enumerate(workload.timings) if timing != Timing()]
    swept = sweep(policies, traces, latency, record_rounds=bool(others), arrays=workload.arrays)
    seconds = np.empty((len(SECONDS), len(workload.timings), len(policies), len(traces)))
    seconds[:] = np.stack([swept.decode_s, swept.draft_busy_s, swept.target_busy_s])[:, None]
    if swept.rounds is not None:
        request, position = _places(swept.rounds, workload.arrays)
        for index in others:
            timing = workload.timings[index]
            seconds[:, index] = _timed(timing, policies, workload, latency, swept.rounds, request, position)
    return Evaluated(
        policies=tuple(policies),
        counts={name: swept.counts[name] for name in COUNTS},
        seconds=dict(zip(SECONDS, seconds, strict=True)),
        peak_kv_tokens=swept.peak_kv_tokens,
    )


def speeds_under(
    workload: Workload, timing: Timing, policies: Sequence[Policy], latencies: Sequence[LatencyModel]
) -> Floats:
    """(latencies, policies) decode tokens/s with mean latencies; the policies are replayed once."""
    swept = sweep(policies, workload.traces, workload.latency, record_rounds=True, arrays=workload.arrays)
    assert swept.rounds is not None
    request, position = _places(swept.rounds, workload.arrays)
    tokens = swept.counts["num_emitted"].sum(axis=1)
    speeds = []
    for latency in latencies:
        times = _timed(timing, policies, workload, latency, swept.rounds, request, position)
        speeds.append(tokens / times[0].sum(axis=1))
    return np.array(speeds)


def _places(rounds: RoundArrays, arrays: TraceArrays) -> tuple[Ints, Ints]:
    """Request of each round, and committed tokens before it."""
    request = rounds.lane % len(arrays.starts)
    return request, rounds.position - arrays.starts[request]


def _timed(
    timing: Timing,
    policies: Sequence[Policy],
    workload: Workload,
    latency: LatencyModel,
    rounds: RoundArrays,
    request: Ints,
    position: Ints,
) -> Floats:
    """(3, policies, requests) seconds of the rounds in one scenario."""
    traces = workload.traces
    num_lanes = len(policies) * len(traces)
    kinds = [Conditions.of(policy) for policy in policies]
    distinct = list(dict.fromkeys(kinds))
    kind_of_round = np.array([distinct.index(kind) for kind in kinds])[rounds.lane // len(traces)]
    seconds = np.zeros((len(SECONDS), num_lanes))
    for index, conditions in enumerate(distinct):
        model = _latency_of(timing, workload, latency, conditions.drafts)
        timer = RoundTimer(model.under(conditions), traces, interference=timing.placement.shared)
        chosen = np.flatnonzero(kind_of_round == index)
        for first in range(0, len(chosen), ROUNDS_AT_ONCE):
            some = chosen[first : first + ROUNDS_AT_ONCE]
            part = RoundArrays(*(column[some] for column in rounds))
            for sums, values in zip(seconds, timer.times_of(part, request[some], position[some]), strict=True):
                np.add.at(sums, part.lane, values)
    whole_s = seconds.reshape(len(SECONDS), len(policies), len(traces))
    for row, policy in enumerate(policies):
        if policy.needs.is_timed:  # other times, other rounds
            model = _latency_of(timing, workload, latency, policy.needs.drafts)
            its = sweep([policy], traces, model, interference=timing.placement.shared, arrays=workload.arrays)
            whole_s[:, row] = np.stack([its.decode_s, its.draft_busy_s, its.target_busy_s])[:, 0]
    return whole_s


def _latency_of(timing: Timing, workload: Workload, latency: LatencyModel, drafts: bool) -> LatencyModel:
    context = typical_context(workload.traces)
    return adjusted(latency, timing.placement, cost_ratio=timing.cost_ratio, context_tokens=context, drafts=drafts)


def _evaluate_drawn(policies: Sequence[Policy], workload: Workload) -> Evaluated:
    """The same by the SimPy engine, with drawn times."""
    assert workload.seed is not None
    traces = workload.traces
    seconds = np.zeros((len(SECONDS), len(workload.timings), len(policies), len(traces)))
    counts = {name: np.zeros((len(policies), len(traces)), dtype=np.int64) for name in COUNTS}
    peaks = np.zeros(len(policies), dtype=np.int64)
    for row, policy in enumerate(policies):
        for index, timing in enumerate(workload.timings):
            model = _latency_of(timing, workload, workload.latency, policy.needs.drafts)
            found = simulated_requests(policy, traces, model, seed=workload.seed, interference=timing.placement.shared)
            seconds[:, index, row] = found.seconds
            if index == 0:
                peaks[row] = found.peak_kv_tokens
                for name in COUNTS:
                    counts[name][row] = found.counts[name]
    return Evaluated(
        policies=tuple(policies), counts=counts, seconds=dict(zip(SECONDS, seconds, strict=True)), peak_kv_tokens=peaks
    )

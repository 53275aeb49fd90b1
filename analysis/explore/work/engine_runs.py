"""One policy on the SimPy engine with drawn latencies, summed up by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.decoding.policies.base import Policy
from sim.engine import simulate
from sim.latency.base import LatencyModel
from traces.fits.interference import Interference
from traces.metrics.counts import count_rounds
from traces.schema import RequestTrace, Round


@dataclass(frozen=True, kw_only=True)
class RequestSums:
    """seconds: (3, requests) decode, draft busy, target busy. counts: name of `traces.metrics.counts.Counts` ->
    (requests,).
    """

    seconds: NDArray[np.float64]
    counts: dict[str, NDArray[np.int64]]
    peak_kv_tokens: int


def simulated_requests(
    policy: Policy,
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    seed: int,
    interference: Interference | None = None,
) -> RequestSums:
    """Requests one after another; equal seeds give every policy the same draws (common random numbers)."""
    rng = np.random.default_rng(seed)
    run = simulate(policy, traces, latency, rng=rng, interference=interference, record_ops=False)
    seconds = np.zeros((3, len(traces)))
    rounds: list[list[Round]] = [[] for _ in traces]
    # Requests run one after another, so the rounds come request by request, in the order of the traces.
    request = -1
    for done, times in run.rounds:
        request += done.round == 0
        rounds[request].append(done)
        seconds[:, request] += times.end_s - times.start_s, times.draft_s, times.verify_s
    counts = [vars(count_rounds(of_request)) for of_request in rounds]
    return RequestSums(
        seconds=seconds,
        counts={name: np.array([entry[name] for entry in counts]) for name in counts[0]},
        peak_kv_tokens=max(
            done.num_pending + done.num_branches * (1 + done.num_branch_steps) for done, _ in run.rounds
        ),
    )

"""A measured benchmark, simulated: the same finite run on the simulated server, and the forwards that it took.

The run is that of `vllm bench serve`: so many requests, Poisson arrivals at a rate, at most so many at once. Prompts and
outputs have the mean lengths of the run, since a table tells no others. Requests are scheduled as vLLM does (`sim.serving`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.serving.cluster import serve
from sim.serving.costs import SummedCosts
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds, LengthRule
from sim.serving.rounds.run_lengths import drawn_runs
from sim.serving.settings import Server
from sim.serving.workload.arrivals import BenchServe
from traces.fits.step_costs import StepCosts
from traces.importers.server_bench import ServerBench
from traces.workload import Workload

Floats = NDArray[np.float64]


#: What a table does not say of the engine: vLLM's defaults (V1 has no watermark), and a client on the same machine.
VLLM = Server(watermark=0.0, client_s=0.01)


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedBench:
    """What the simulated server did in one benchmark.

    output_tokens_per_s, mean_tpot_s, median_ttft_s, duration_s: as in `ServerBench`. num_preemptions: requests that lost
    their memory and read their tokens again. mean_running: requests in the batch, over the steps. target, draft: (kinds, 4)
    the forwards; see `traces.fits.step_cost_fit.Measurement`.
    """

    output_tokens_per_s: float
    mean_tpot_s: float
    median_ttft_s: float
    duration_s: float
    num_preemptions: int
    mean_running: float
    target: Floats
    draft: Floats


def simulate_bench(
    bench: ServerBench, costs: StepCosts, *, engine: Server, seed: int, rule: LengthRule | None = None
) -> SimulatedBench:
    """Run one benchmark; the same arguments give the same result to the last bit.

    engine: how it schedules; room for requests, memory and lookahead are the benchmark's own.
    rule: chooses draft lengths of at most the benchmark's, which are its own where it is None.
    Arrivals and acceptance have streams of their own, so that runs with other costs meet the same requests and luck.
    """
    arrivals, lengths, acceptance = np.random.default_rng(seed).spawn(3)
    workload = _workload(bench, arrivals, lengths)
    server = replace(
        engine,
        max_num_seqs=bench.max_concurrency,
        kv_tokens=bench.kv_tokens,
        # A step that is planned before the one before it has ended takes all of its tokens for accepted.
        lookahead_tokens=bench.draft_length + (bench.draft_length + 1) * engine.schedules_ahead,
    )
    conditional = (0.0,) if bench.acceptance is None else bench.acceptance.conditional
    runs = drawn_runs(conditional, bench.num_requests, int(workload.output_tokens.max()), acceptance)
    target, draft = _Counted(costs.target_s), _Counted(costs.draft_s)
    served = serve(
        workload,
        server,
        lambda: SummedCosts(_Forwards(target, draft)),
        lambda: LengthRounds(runs, rule or FixedLengthRule(bench.draft_length)),
    )
    (totals,) = served.replicas
    duration_s = float(served.last_s.max())
    further = served.num_output - 1
    return SimulatedBench(
        output_tokens_per_s=float(served.num_output.sum()) / duration_s,
        mean_tpot_s=float(((served.last_s - served.first_s)[further > 0] / further[further > 0]).mean()),
        median_ttft_s=float(np.median(served.first_s - served.sent_s)),
        duration_s=duration_s,
        num_preemptions=totals.num_preemptions,
        mean_running=totals.num_request_steps / max(totals.num_steps, 1),
        target=target.forwards(),
        draft=draft.forwards(),
    )


def _workload(bench: ServerBench, arrivals: np.random.Generator, lengths: np.random.Generator) -> Workload:
    """The run's requests, as vLLM sends them."""
    num = bench.num_requests
    law = BenchServe(request_rate=bench.arrivals_per_s, max_concurrency=bench.max_concurrency)
    return Workload(
        arrival_s=law.draw_s(num, arrivals),
        prompt_tokens=_around(bench.input_tokens / num, num, lengths),
        output_tokens=_around(bench.output_tokens / num, num, lengths),
        max_concurrency=bench.max_concurrency,
    )


def _around(mean: float, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(num,) whole numbers with this mean: the two next to it, in random order."""
    low = math.floor(mean)
    num_high = round((mean - low) * num)
    values = np.full(num, low)
    values[:num_high] += 1
    shuffled: NDArray[np.int64] = np.maximum(rng.permutation(values), 1)
    return shuffled


class _Counted:
    """A law of one forward that counts what it is asked for."""

    def __init__(self, seconds: Callable[[int, int, int], float]) -> None:
        self._seconds = seconds
        self._counts: dict[tuple[int, int], list[int]] = {}

    def __call__(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        known = self._counts.get((num_tokens, num_requests))
        if known is None:
            known = self._counts[num_tokens, num_requests] = [0, 0]
        known[0] += 1
        known[1] += context_tokens
        return self._seconds(num_tokens, context_tokens, num_requests)

    def forwards(self) -> Floats:
        """(kinds, 4) tokens, mean context, requests, count: contexts enter the law linearly, so that their mean is enough."""
        rows: list[list[Any]] = [
            [tokens, context / count, requests, count] for (tokens, requests), (count, context) in self._counts.items()
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class _Forwards:
    """Counted laws, as `sim.serving.costs.SummedModel`."""

    target_s: Callable[[int, int, int], float]
    draft_s: Callable[[int, int, int], float]

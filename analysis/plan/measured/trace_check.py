"""A check against a server whose requests were recorded one by one: calibrated on the first half, the second half predicted.

Without speculation a request's decoding lasts as long as the steps between its first and its last token. Which steps these
were the simulator tells, and it hardly depends on how long each took: a pass simulates the whole trace with the costs so far
(the requests' arrivals and lengths are inputs, their times are not), and fits the costs to the first half's measured
decoding times. What the trace does not say of the engine, its memory, is chosen as what explains the first half best.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.explore.work.scale_out import Workers, run_tasks
from sim.serving.cluster import ServedRun, serve
from sim.serving.costs import SummedCosts
from sim.serving.replica import StepRecord
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.run_lengths import RunLengths
from sim.serving.settings import Server
from traces.files import write_text
from traces.fits.step_cost_fit import Measurement, StepCostFit, fit_step_costs, target_prior
from traces.fits.step_costs import StepCosts
from traces.importers.traffic.measured import MeasuredRequests

Floats = NDArray[np.float64]

NUM_PASSES = 3
MEMORY_SHARES = (
    0.8,
    0.85,
    0.9,
    0.95,
    1.0,
    1.05,
    1.1,
    1.2,
)  # of the tokens held while requests waited, tried for the memory
DEFAULT_MAX_NUM_SEQS = 256
_PLATEAU = 0.2  # of the time in which requests waited: as many ran for so long only because no more were let in


@dataclass(frozen=True, kw_only=True)
class TraceErrors:
    """Predicted over measured, less one, over the requests of the second half.

    mean_tpot_error, p95_tpot_error, mean_ttft_error, median_ttft_error: of each statistic. fit_error: mean absolute error of
    the decoding times in the first half. kv_tokens: memory that explains the first half best; None without limit.
    """

    mean_tpot_error: float
    p95_tpot_error: float
    mean_ttft_error: float
    median_ttft_error: float
    fit_error: float
    kv_tokens: int | None
    max_num_seqs: int
    num_fitted: int
    num_predicted: int


@dataclass(frozen=True, kw_only=True)
class TraceCheck:
    """What the check found."""

    errors: TraceErrors
    costs: StepCosts


def check_trace(
    measured: MeasuredRequests, *, max_num_batched_tokens: int = 2048, workers: Workers | None = None
) -> TraceCheck:
    """Calibrate on the first half of the requests, in the order of their arrival, and predict the second.

    max_num_batched_tokens: of the engine; 2048 is vLLM's default for a server on most devices. Equal arguments give equal
    numbers. Raises ValueError for less than 20 requests.
    """
    count = measured.workload.num_requests
    if count < 20:
        raise ValueError(f"a check needs at least 20 requests to fit and to predict, but got {count}.")
    num_fitted = count // 2
    fit, server = fit_trace(measured, num_fitted, max_num_batched_tokens=max_num_batched_tokens, workers=workers)
    run, _ = _simulate(measured, server, fit.step_costs())
    later = slice(num_fitted, None)
    tpot_s = ((run.last_s - run.first_s) / np.maximum(run.num_output - 1, 1))[later]
    ttft_s = (run.first_s - run.sent_s)[later]
    known = np.isfinite(measured.tpot_s[later])
    measured_tpot_s, measured_ttft_s = measured.tpot_s[later][known], measured.ttft_s[later]
    errors = TraceErrors(
        mean_tpot_error=float(tpot_s[known].mean() / measured_tpot_s.mean() - 1),
        p95_tpot_error=float(np.percentile(tpot_s[known], 95) / np.percentile(measured_tpot_s, 95) - 1),
        mean_ttft_error=float(ttft_s.mean() / measured_ttft_s.mean() - 1),
        median_ttft_error=float(np.median(ttft_s) / np.median(measured_ttft_s) - 1),
        fit_error=fit.mean_abs_error,
        kv_tokens=server.kv_tokens,
        max_num_seqs=server.max_num_seqs,
        num_fitted=num_fitted,
        num_predicted=count - num_fitted,
    )
    return TraceCheck(errors=errors, costs=fit.step_costs())


def write_trace_check(check: TraceCheck, output_dir: Path) -> None:
    """summary.json and step_costs.json, into a folder that exists."""
    text = json.dumps({"check": asdict(check.errors)}, indent=2)
    write_text(output_dir / "summary.json", text + "\n")
    check.costs.write(output_dir / "step_costs.json")


def fit_trace(
    measured: MeasuredRequests, num_fitted: int, *, max_num_batched_tokens: int, workers: Workers | None = None
) -> tuple[StepCostFit, Server]:
    """Step costs and memory from the first requests' times, in a few passes through the simulator."""
    spans_s = (measured.last_token_s - measured.first_token_s)[:num_fitted]
    further = measured.workload.output_tokens[:num_fitted] - 1
    prior = target_prior(float((spans_s[further > 0] / further[further > 0]).min()))
    costs = StepCosts(target=prior.guess)
    running, held = _held_while_others_wait(measured)
    servers = [_server(running, memory, max_num_batched_tokens) for memory in _memories(held)]
    server = servers[len(servers) // 2]
    for _ in range(NUM_PASSES):
        run, steps = _simulate(measured, server, costs)
        times = (run.first_s[:num_fitted], run.last_s[:num_fitted])
        firsts, lasts = (np.searchsorted(steps[:, 0], ends_s, side="right") for ends_s in times)
        measurements = [
            Measurement(seconds=float(span_s), target=_kinds(steps[first:last, 1:]))
            for span_s, first, last in zip(spans_s, firsts, lasts, strict=True)
            if last > first and span_s > 0
        ]
        fit = fit_step_costs(measurements, prior)
        costs = fit.step_costs()
        tasks = [(measured, each, costs, num_fitted) for each in servers]
        errors = [error for _, error in sorted(run_tasks(_finish_error, tasks, workers or Workers()))]
        server = servers[int(np.argmin(errors))]
    return fit, server


def _finish_error(measured: MeasuredRequests, server: Server, costs: StepCosts, num_fitted: int) -> float:
    """Mean absolute error of the logarithm of the first requests' times in the system."""
    run, _ = _simulate(measured, server, costs)
    simulated_s, measured_s = run.last_s - run.sent_s, measured.last_token_s - measured.arrival_s
    return float(np.abs(np.log(simulated_s / measured_s))[:num_fitted].mean())


def _simulate(measured: MeasuredRequests, server: Server, costs: StepCosts) -> tuple[ServedRun, Floats]:
    """The whole trace, and (steps, 4) the end, tokens, contexts and requests of every step."""
    workload = measured.workload
    steps: list[tuple[float, int, int, int]] = []

    def watch(_: int, record: StepRecord) -> None:
        plan = record.plan
        tokens = plan.num_running + sum(chunk.num_tokens for chunk in plan.chunks)
        context = plan.context_tokens + sum(chunk.context_tokens for chunk in plan.chunks)
        steps.append((record.end_s, tokens, context, plan.num_running + len(plan.chunks)))

    nothing = RunLengths(
        np.zeros(int(workload.output_tokens.max()) + 1, dtype=np.int64), np.zeros(workload.num_requests, dtype=np.int64)
    )
    run = serve(
        workload, server, lambda: SummedCosts(costs), lambda: LengthRounds(nothing, FixedLengthRule(0)), on_step=watch
    )
    return run, np.array(steps)


def _kinds(steps: Floats) -> Floats:
    """(steps, 3) tokens, contexts, requests -> (kinds, 4) with counts; contexts enter the law linearly, so by their mean."""
    kinds, which, counts = np.unique(steps[:, [0, 2]], axis=0, return_inverse=True, return_counts=True)
    contexts = np.bincount(which.ravel(), steps[:, 1]) / counts
    return np.column_stack([kinds[:, 0], contexts, kinds[:, 1], counts])


def _held_while_others_wait(measured: MeasuredRequests) -> tuple[int, float]:
    """How many requests a server runs at most, and the tokens that it typically holds while others wait.

    A server that lets no more in for lack of room in the batch runs the same number most of that time; where the number moves
    it lacks memory. Contexts are taken to grow evenly. Without a time in which requests wait: as many as ran, and no limit.
    """
    workload = measured.workload
    spans_s = np.maximum(measured.last_token_s - measured.first_token_s, 1e-9)
    counts, contexts = [], []
    for now in np.linspace(0.0, float(measured.last_token_s.max()), 2000):
        if not ((measured.queued_s <= now) & (measured.scheduled_s > now)).any():
            continue
        runs = (measured.scheduled_s <= now) & (measured.last_token_s > now)
        done = np.clip((now - measured.first_token_s) / spans_s, 0.0, 1.0)
        counts.append(int(runs.sum()))
        contexts.append(float((workload.prompt_tokens + workload.output_tokens * done)[runs].sum()))
    if len(counts) < 20:
        return DEFAULT_MAX_NUM_SEQS, 0.0
    most = max(counts)
    is_full = np.mean(np.array(counts) == most) > _PLATEAU
    return (most if is_full else DEFAULT_MAX_NUM_SEQS), float(np.median(contexts))


def _memories(held: float) -> list[int | None]:
    """What to try for the memory: about what is held while requests wait, or more than is ever needed."""
    return [*(round(share * held) for share in MEMORY_SHARES if held), None]


def _server(running: int, kv_tokens: int | None, max_num_batched_tokens: int) -> Server:
    return Server(
        max_num_seqs=running,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_tokens=kv_tokens,
        watermark=0.0,
        schedules_ahead=True,
    )

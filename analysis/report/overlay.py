"""A run's timeline with the simulator's beside it: every request as it ran, and as its trace replays under the same policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.check.predict import frames_of
from analysis.report.material import read_arm
from sim.decoding.policies.catalog import parse_policy
from sim.engine import simulate
from sim.latency.base import LatencyModel
from traces.folder.perfetto import SIMULATED, write_timeline
from traces.folder.run import Run, RunError
from traces.progress import Report, silent
from traces.schema import Op, RequestTrace

TIMES = ["start_s", "end_s"]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What a timeline holds. num_requests: drawn as they ran; num_simulated of them as simulated, too. num_left_out: beyond
    the most that were asked for. error: simulated over measured decode seconds of the requests that have both, minus 1."""

    num_requests: int
    num_simulated: int
    num_left_out: int
    error: float | None


def draw_timeline(folder: Path, output: Path, *, max_requests: int = 100, progress: Report = silent) -> Overlay:
    """Write a file for Perfetto. folder: what `report` reads; its measured run is drawn. Raises RunError.

    A simulated request begins its decoding when the measured one does, or when the simulated one before it has ended,
    whichever is later; mean latencies.
    """
    if output.exists():
        raise RunError(f"{output} exists already, and nothing is overwritten; name another file with --output.")
    arm = read_arm(folder)
    run = arm.measured or next(iter(arm.simulated), None)
    if run is None or run.ops.empty:
        raise RunError(f"{folder} holds no operations to draw; give a folder that was recorded, measured or simulated.")
    requests = run.requests.sort_values("arrival_s").head(max_requests)
    ops = run.ops[run.ops.request_id.isin(requests.request_id)]
    rounds = run.rounds[run.rounds.request_id.isin(requests.request_id)]
    drawn, ratio = [ops], None
    if arm.measured is not None and arm.latency is not None:
        simulated, ratio = _simulated(run, requests, ops, rounds, arm.latency, progress)
        drawn += simulated
    write_timeline(pd.concat(drawn, ignore_index=True), output, rounds)
    return Overlay(
        num_requests=len(requests),
        num_simulated=len(drawn) - 1,
        num_left_out=len(run.requests) - len(requests),
        error=ratio,
    )


def _simulated(
    run: Run, requests: pd.DataFrame, ops: pd.DataFrame, rounds: pd.DataFrame, latency: LatencyModel, progress: Report
) -> tuple[list[pd.DataFrame], float | None]:
    """Operations of each simulated request, on the devices of the measured ones; and the error of all of them together."""
    trace_of, devices = traces_by_request(run), dict(zip(ops.actor, ops.device, strict=True))
    begins = rounds.groupby("request_id").start_s.min()
    ends = rounds.groupby("request_id").end_s.max()
    drawn, free_s, measured_s, simulated_s = [], 0.0, 0.0, 0.0
    for done, row in enumerate(requests.to_dict("records")):
        progress(done, len(requests))
        request_id = int(row["request_id"])
        trace = trace_of(request_id)
        if trace is None or request_id not in begins.index:
            continue
        try:
            replayed = simulate(parse_policy(str(row["policy"])), [trace], latency, label=str(row["policy"]))
        except ValueError:  # the trace cannot answer this policy
            continue
        its = pd.DataFrame(replayed.ops, columns=Op._fields)
        times = frames_of(replayed)[1]
        decode_s = float(times.end_s.max() - times.start_s.min())
        measured_s += float(ends[request_id] - begins[request_id])
        simulated_s += decode_s
        shift_s = max(float(begins[request_id]) - float(times.start_s.min()), free_s - float(its.start_s.min()))
        its = its.assign(**{name: its[name] + shift_s for name in TIMES}, request_id=request_id, source=SIMULATED)
        drawn.append(its.assign(device=its.actor.map(devices).fillna(its.device)))
        free_s = float(its.end_s.max())
    return drawn, simulated_s / measured_s - 1 if measured_s else None


def traces_by_request(run: Run) -> Callable[[int], RequestTrace | None]:
    """From a request to its trace, that of another policy on the same prompt where its own was not recorded: under shared
    noise they are one sequence."""
    own = {trace.request_id: trace for trace in run.traces()}
    shared = {(trace.prompt_id, trace.temperature, trace.num_tokens): trace for trace in own.values()}
    columns = run.requests[["request_id", "prompt_id", "temperature", "num_output_tokens"]]
    keys = {row[0]: row[1:] for row in columns.itertuples(index=False, name=None)}
    return lambda request_id: own.get(request_id) or shared.get(keys[request_id])

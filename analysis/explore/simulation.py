"""Trace replay in simulated time, as run folders: what a recorded run would have been under other policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.check.predict import predict
from analysis.explore.inputs import LatencySource, doubt_of_latency, latency_of
from executor.models.names import check_drafter
from executor.recording.settings import draft_of
from sim.decoding.policies.base import Policy
from traces.folder.run import read_run
from traces.folder.writer import RunWriter
from traces.metrics.speeds import Speed, speeds_summary


@dataclass(frozen=True)
class Simulated:
    """Speeds of the policies, and why the latencies support no claim about them (empty where they do)."""

    speeds: list[Speed]
    doubt: str


def simulate_run(
    run_dir: Path, output_dir: Path, policies: Sequence[Policy], *, latency: LatencySource = None, seed: int = 0
) -> Simulated:
    """Simulate policies on a run's traces; writes one run folder for each under output_dir."""
    run = read_run(run_dir)
    for policy in policies:
        check_drafter(policy, draft_of(run.config))
    traces = run.traces()
    model = latency_of(run, latency)
    doubt = doubt_of_latency(model)
    predicted = predict(policies, traces, model, seed=seed, record_ops=True)
    for index, (label, simulated) in enumerate(predicted.runs.items()):
        folder = output_dir / f"{index:02d}-{label.partition(':')[0]}"
        config = {"policy": label, "run": str(run_dir), "calibration": str(latency or ""), "seed": seed}
        with RunWriter(folder, config=config, meta={"kind": "simulated"}) as writer:
            writer.ops(simulated.ops)
            writer.rounds(simulated.rounds)
            for request in simulated.requests:
                writer.request(request)
            for trace in traces:
                writer.trace(trace)
            speeds = [speed for speed in predicted.speeds if speed.policy == label]
            writer.finish({"predicted": speeds_summary(speeds), "doubt": doubt})
    return Simulated(predicted.speeds, doubt)

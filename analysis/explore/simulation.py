"""Trace replay in simulated time, as run folders: what a recorded run would have been under other policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.check.predict import predict
from executor.models.names import check_drafter
from executor.recording.settings import draft_of
from sim.decoding.policies.catalog import parse_policy
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import Calibration, calibrate
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.importers.base import ImportedTraces, Unseen
from traces.importers.catalog import read_foreign
from traces.metrics.speeds import Speed, speeds_summary


def open_recording(
    path: Path, *, temperatures: Sequence[float] = (), unseen: Unseen = Unseen.REJECTED
) -> Run | ImportedTraces:
    """A run folder, or a foreign trace in a file.

    temperatures: if exactly one is asked about, it is that of foreign requests that do not name theirs. unseen: what to take
    for outcomes that a foreign trace does not know. Raises RunError or ForeignTraceError.
    """
    if path.is_file():
        return read_foreign(path, temperature=temperatures[0] if len(temperatures) == 1 else None, unseen=unseen)
    return read_run(path)


def load_calibration(recording: Run | ImportedTraces, path: Path | None) -> Calibration:
    """A saved calibration, or the one beside the run, or one fitted from the run now.

    Raises ValueError without a path for a foreign trace, which holds no operations to fit.
    """
    if path is not None:
        return Calibration.load(path)
    if isinstance(recording, ImportedTraces):
        raise ValueError(f"{recording.source} holds no times of operations; name a calibration with --calibration.")
    beside = recording.folder / "calibration.json"
    return Calibration.load(beside) if beside.exists() else calibrate(recording)


def simulate_run(
    run_dir: Path, output_dir: Path, labels: Sequence[str], *, calibration: Path | None = None, seed: int = 0
) -> list[Speed]:
    """Simulate policies on a run's traces; writes one run folder for each under output_dir. Returns their speeds."""
    policies = [parse_policy(label) for label in labels]
    run = read_run(run_dir)
    for policy in policies:
        check_drafter(policy, draft_of(run.config))
    latency = FittedLatency(load_calibration(run, calibration))
    traces = run.traces()
    found = predict(policies, traces, latency, seed=seed, record_ops=True)
    for index, (label, simulated) in enumerate(found.runs.items()):
        folder = output_dir / f"{index:02d}-{label.partition(':')[0]}"
        config = {"policy": label, "run": str(run_dir), "calibration": str(calibration or ""), "seed": seed}
        with RunWriter(folder, config=config, meta={"kind": "simulated"}) as writer:
            writer.ops(simulated.ops)
            writer.rounds(simulated.rounds)
            for request in simulated.requests:
                writer.request(request)
            for trace in traces:
                writer.trace(trace)
            speeds = [speed for speed in found.speeds if speed.policy == label]
            writer.finish({"predicted": speeds_summary(speeds)})
    return found.speeds

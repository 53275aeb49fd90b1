"""Calibrate, explore and simulate from a script: no models run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from analysis.explore.exploration import Exploration, explore_study
from analysis.explore.simulation import Simulated, simulate_run
from analysis.explore.work.scale_out import Workers
from analysis.study.flags import StudyFlags
from analysis.study.study import Study
from analysis.tuning.asked import asked_study
from analysis.tuning.auto import is_auto, resolve_on_run
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.own import import_own
from sim.latency.base import LatencyModel
from traces.fits.calibration import Calibration
from traces.fits.calibration import calibrate as fit
from traces.folder.run import read_run
from traces.importers.unseen import Unseen
from traces.progress import Report, silent

__all__ = ["calibrate", "explore", "read_run", "simulate"]

Policies: TypeAlias = Sequence[str | Policy]  # labels of `sim.decoding.policies.catalog`, or the objects


def labels_of(policies: Policies) -> list[str]:
    """The labels, of which `module:Class(settings)` imports the module. Raises ValueError for what is no policy."""
    return [label_of(parse_policy(import_own(each)) if isinstance(each, str) else each) for each in policies]


def stated(policies: Policies) -> list[str]:
    """Labels as `--policy` takes them: a method's name alone leaves its settings open (`analysis.tuning.auto`)."""
    return [
        each.strip() if isinstance(each, str) and is_auto(each) else label
        for each, label in zip(policies, labels_of(policies), strict=True)
    ]


def calibrate(run: str | Path, *, output: str | Path | None = None, seed: int = 0) -> Calibration:
    """Latencies fitted to a recorded run. output: also write them to this new file. Raises ValueError."""
    if output is not None and Path(output).exists():
        raise ValueError(f"{output} exists already; name another place.")
    fitted = fit(read_run(run), seed=seed)
    if output is not None:
        fitted.save(output)
    return fitted


def explore(
    run: str | Path | None,
    output_dir: str | Path,
    *,
    study: str | Path | Study | None = None,
    policies: Policies | None = None,
    calibration: str | Path | LatencyModel | None = None,
    unseen: Unseen | str = Unseen.REJECTED,
    temperatures: Sequence[float] = (),
    placements: Sequence[str] = (),
    interference: Sequence[float] = (),
    link_latency_ms: Sequence[float] = (),
    cost_ratios: Sequence[float] = (),
    alignments: Sequence[str] = (),
    objectives: Sequence[str] = (),
    trials: int = 0,
    sampler: str | None = None,
    workers: int = 1,
    backend: str = "processes",
    scheduler: str | None = None,
    seed: int | None = None,
    progress: Report = silent,
) -> Exploration:
    """Try many policies on the simulator, as `specbranch explore` does with these options; the results are also in output_dir.

    run: None where alignments are laws such as geometric:alpha=0.8, and a calibration gives the times.
    study: a YAML file or an object, which the other arguments change; without one the default grid. Raises ValueError.
    """
    flags = StudyFlags(
        study=Path(study) if isinstance(study, str) else study,
        policies=None if policies is None else stated(policies),
        conditions={
            "temperatures": list(temperatures),
            "placements": list(placements),
            "interference": list(interference),
            "link_latency_s": [1e-3 * value for value in link_latency_ms],
            "cost_ratios": list(cost_ratios),
            "alignments": list(alignments),
        },
        objectives=list(objectives),
        trials=trials,
        sampler=sampler,
        seed=seed,
    )
    run_dir, unknown = None if run is None else Path(run), Unseen(unseen)
    latency = Path(calibration) if isinstance(calibration, str) else calibration
    asked, _ = asked_study(flags, run_dir, latency=latency, unseen=unknown)
    return explore_study(
        run_dir,
        Path(output_dir),
        asked,
        latency=latency,
        unseen=unknown,
        workers=Workers(count=workers, backend=backend, scheduler=scheduler),  # type: ignore[arg-type]  # it refuses others
        progress=progress,
    )


def simulate(
    run: str | Path,
    output_dir: str | Path,
    policies: Policies,
    *,
    calibration: str | Path | LatencyModel | None = None,
    seed: int = 0,
) -> Simulated:
    """Replay a recorded run under other policies in simulated time; output_dir gets a run folder for each. ValueError."""
    latency = Path(calibration) if isinstance(calibration, str) else calibration
    return simulate_run(
        Path(run),
        Path(output_dir),
        list(resolve_on_run(stated(policies), Path(run), latency=latency).values()),
        latency=latency,
        seed=seed,
    )

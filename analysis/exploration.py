"""Many policies on the simulator: which is best for this pair on this hardware, as far as a recorded run can tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.prediction import predict
from analysis.simulation import load_calibration
from sim.latency import FittedLatency
from sim.policies.catalog import parse_policy
from traces.runs import RunWriter, read_run
from traces.schema import num_tokens
from traces.speeds import Speed, speeds_summary


@dataclass(frozen=True)
class Exploration:
    """Predicted speeds of many policies. wall_s: seconds that the search took."""

    speeds: list[Speed]
    num_policies: int
    num_tokens: int
    wall_s: float

    def best(self, count: int) -> list[Speed]:
        """The fastest ones, best first, over all temperatures."""
        return sorted(self.speeds, key=lambda speed: -speed.tokens_per_s)[:count]

    def best_at(self, temperature: float, methods: Sequence[str] | None = None) -> Speed:
        """The fastest policy at one temperature, among the methods named."""
        here = [
            speed
            for speed in self.speeds
            if speed.temperature == temperature and (methods is None or speed.policy.partition(":")[0] in methods)
        ]
        return max(here, key=lambda speed: speed.tokens_per_s)


def default_grid(longest: int = 8) -> list[str]:
    """Labels of the methods over draft lengths and thresholds."""
    lengths = range(1, longest + 1)
    return [
        "autoregressive",
        *(f"fixed_length:draft_length={length}" for length in lengths),
        *(
            f"confidence_stop:threshold={threshold},max_length={length}"
            for length in (4, 6, 8)
            for threshold in (0.2, 0.4, 0.6, 0.8)
        ),
        *(f"pearl:draft_length={length}" for length in range(2, longest + 5, 1)),
    ]


def explore_run(
    run_dir: Path,
    output_dir: Path,
    labels: Sequence[str],
    *,
    calibration: Path | None = None,
    temperatures: Sequence[float] | None = None,
    seed: int = 0,
) -> Exploration:
    """Predict every policy on a run's traces; writes results.parquet and summary.json to a new folder."""
    policies = [parse_policy(label) for label in dict.fromkeys(labels)]
    run = read_run(run_dir)
    traces = [trace for trace in run.traces() if temperatures is None or trace.temperature in temperatures]
    if not traces:
        raise ValueError(f"{run_dir} holds no trace at temperature {temperatures}; record there first.")
    config = {"run": str(run_dir), "policies": list(labels), "calibration": str(calibration or ""), "seed": seed}
    with RunWriter(output_dir, config=config, meta={"kind": "explored"}) as writer:
        started = time.perf_counter()
        latency = FittedLatency(load_calibration(run, calibration))
        speeds = predict(policies, traces, latency, seed=seed).speeds
        found = Exploration(speeds, len(policies), num_tokens(traces), time.perf_counter() - started)
        pd.DataFrame(speeds_summary(speeds)).to_parquet(output_dir / "results.parquet")
        writer.finish(
            {
                "exploration": {
                    "num_policies": found.num_policies,
                    "num_tokens": found.num_tokens,
                    "wall_s": found.wall_s,
                    "best": speeds_summary(found.best(1))[0],
                }
            }
        )
    return found

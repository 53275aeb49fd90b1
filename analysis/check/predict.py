"""Predicted speeds: recorded traces under any policy, in simulated time, measured as a real run would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.engine import SimulatedRun, simulate
from sim.latency.base import LatencyModel
from traces.metrics.speeds import Speed, measured_speeds
from traces.schema import RequestRecord, RequestTrace, Round, RoundTimes


@dataclass(frozen=True)
class Prediction:
    """Simulated runs of several policies on the same traces, and their speeds."""

    runs: dict[str, SimulatedRun]
    speeds: list[Speed]


def predict(
    policies: Sequence[Policy],
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    seed: int | None = 0,
    record_ops: bool = False,
    baseline: str = "autoregressive",
) -> Prediction:
    """Simulate every policy on every trace; equal seeds give each policy the same draws (common random numbers).

    seed: of the latency draws; None takes mean latencies. Speeds come with bootstrap intervals over prompts.
    """
    runs, requests, rounds = {}, [], []
    for policy in policies:
        label = label_of(policy)
        rng = None if seed is None else np.random.default_rng(seed)
        run = simulate(policy, traces, latency, rng=rng, record_ops=record_ops, label=label)
        runs[label] = run
        these, those = frames_of(run)
        requests.append(these.assign(request_id=label + "/" + these.request_id.astype(str)))
        rounds.append(those.assign(request_id=label + "/" + those.request_id.astype(str)))
    speeds = measured_speeds(pd.concat(requests), pd.concat(rounds), baseline=baseline)
    return Prediction(runs, speeds)


def frames_of(run: SimulatedRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and rounds of a simulated run, as `traces.folder.run.Run` gives them for a recorded one."""
    requests = pd.DataFrame(run.requests, columns=RequestRecord._fields)
    rounds = pd.DataFrame(
        [(*round_, *times) for round_, times in run.rounds], columns=[*Round._fields, *RoundTimes._fields]
    )
    return requests, rounds


def speed_of(speeds: Sequence[Speed], policy: str, temperature: float) -> Speed:
    """The entry of one policy and temperature."""
    for speed in speeds:
        if speed.policy == policy and speed.temperature == temperature:
            return speed
    raise ValueError(f"no speed of {policy} at temperature {temperature} among {len(speeds)} entries.")

"""A made-up machine of known latencies whose speed moves: recorded and held-out prompts decoded there by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim.decoding.acceptance_models import Chained
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.engine import simulate
from sim.latency.fitted import FittedLatency
from tests.analysis.made_up_run import CHAIN, TAIL_DEPTH, seed_trace, write_run
from traces.fits.calibration import calibrate
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.schema import RequestTrace

NUM_TOKENS = 60
ANCHORS = ("autoregressive", "probe")
TESTED = ("autoregressive", "fixed_length:draft_length=2", "fixed_length:draft_length=5", "pearl:draft_length=5")
SpeedPath = Callable[[float], float]


@dataclass(frozen=True)
class NoisyRun:
    """A validation's run, as `validate_run` measures it. recorded: the traces that a prediction may use."""

    run: Run
    recorded: list[RequestTrace]
    old_prompts: set[str]


def true_latency(folder: Path) -> FittedLatency:
    """Of the machine at speed 1."""
    return FittedLatency(calibrate(read_run(write_run(folder, num_requests=24))))


def noisy_run(
    folder: Path, latency: FittedLatency, path: SpeedPath, *, num_old: int, num_new: int, seed: int
) -> NoisyRun:
    """Old prompts under the anchors and new ones under the tested policies, the baseline twice, block by block in turns."""
    rng = np.random.default_rng(seed)
    model = Chained(CHAIN, [seed_trace(rng, 1.0)])
    traces = [model.sample(NUM_TOKENS, index, rng) for index in range(num_old + num_new)]
    traces = [replace(trace, prompt_id=f"p{index}", tail_depth=TAIL_DEPTH) for index, trace in enumerate(traces)]
    old, new = traces[:num_old], traces[num_old:]
    turns = [trace for pair in zip(new, old, strict=False) for trace in pair] + new[num_old:] + old[num_new:]
    with RunWriter(folder, config={}, meta={"kind": "executed"}) as writer:
        recorder = _Recorder(writer, latency, path, rng)
        for trace in turns:
            labels = ANCHORS if trace in old else (TESTED[0], *TESTED)
            recorder.block(trace, [parse_policy(label) for label in labels])
        writer.finish({"contention": {"mean_other_share": 0.0}})
    return NoisyRun(read_run(folder), old, {trace.prompt_id for trace in old})


class _Recorder:
    """Writes simulated requests one after the other, each as slow as the machine is when it begins."""

    def __init__(self, writer: RunWriter, latency: FittedLatency, path: SpeedPath, rng: np.random.Generator) -> None:
        self._writer, self._latency, self._path, self._rng = writer, latency, path, rng
        self._now, self._count = 0.0, 0

    def block(self, trace: RequestTrace, policies: Sequence[Policy]) -> None:
        seen: list[str] = []
        for index, place in enumerate(self._rng.permutation(len(policies)).tolist()):
            policy = policies[place]
            label = label_of(policy)
            renamed = replace(trace, request_id=self._count)
            run = simulate(policy, [renamed], self._latency, rng=self._rng)
            slow, start = 1 / self._path(self._now), self._now
            self._writer.ops(
                [op._replace(start_s=start + slow * op.start_s, end_s=start + slow * op.end_s) for op in run.ops]
            )
            self._writer.rounds(
                [
                    (
                        round_,
                        times._replace(
                            start_s=start + slow * times.start_s,
                            end_s=start + slow * times.end_s,
                            draft_s=slow * times.draft_s,
                            verify_s=slow * times.verify_s,
                        ),
                    )
                    for round_, times in run.rounds
                ]
            )
            (record,) = run.requests
            self._writer.request(
                record._replace(
                    policy=label,
                    repeat=seen.count(label),
                    arrival_s=start + slow * record.arrival_s,
                    first_token_s=start + slow * record.first_token_s,
                    finish_s=start + slow * record.finish_s,
                    tokens_sha256=trace.prompt_id,
                )
            )
            if index == 0:
                self._writer.trace(renamed)
            seen.append(label)
            self._now, self._count = start + slow * record.finish_s, self._count + 1

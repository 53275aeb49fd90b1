"""What the executor costs and gains, as ratios measured in one run: overlap, recorder, speed-up.

Run on free cores: pytest -m benchmark tests/benchmarks/test_executor.py -s
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from executor.pair import Session
from executor.recording.contention import ContentionMeter
from executor.recording.prompts import load_prompts
from executor.recording.recorder import record_run
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from tests.laws.overlap import measure_overlap
from tests.settings import record_settings
from traces.folder.run import Run
from traces.metrics.speeds import measured_speeds
from traces.processes import num_cores
from traces.schema import Sampling

pytestmark = pytest.mark.benchmark


@pytest.fixture(autouse=True)
def _free_cores() -> None:
    if not cores_are_free():
        pytest.skip("the cores are not free: a timing would say nothing")


@pytest.fixture(scope="module")
def run(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = record_settings(
        policies=(
            "autoregressive",
            *(f"fixed_length:draft_length={length}" for length in (1, 2, 3, 4)),
            *(f"pearl:draft_length={length}" for length in (5, 7, 9)),
            "saguaro:draft_length=4,fan_out=2",
        ),
        num_prompts=16,
        max_new_tokens=96,
        capacity=512,
        aligns=False,
        skip_prompts=64,
    )
    return record_run(settings, tmp_path_factory.mktemp("benchmark") / "run", session=session)


def test_overlap(run: Run) -> None:
    for policy in [label for label in run.requests.policy.unique() if label.startswith(("pearl", "saguaro"))]:
        ids = run.requests.loc[run.requests.policy == policy, "request_id"]
        found = measure_overlap(run.ops[run.ops.request_id.isin(ids)], run.rounds[run.rounds.request_id.isin(ids)])
        print(
            f"\n{policy}: wall / max(draft, verify) = {found.wall_over_bound:.3f}, "
            f"wall / sum = {found.wall_over_serial:.3f}, {found.num_rounds} rounds"
        )
        assert found.wall_over_serial < 1


def test_speed_over_autoregressive_on_the_same_engine(run: Run) -> None:
    speeds = measured_speeds(run.requests, run.rounds)
    for temperature in sorted({speed.temperature for speed in speeds}):
        best = max((speed for speed in speeds if speed.temperature == temperature), key=lambda s: s.tokens_per_s)
        print(
            f"\nT = {temperature:g}: best is {best.policy}: {best.speedup:.2f} {best.speedup_interval} of autoregressive"
        )
        assert best.speedup is not None


def test_recorder_overhead(session: Session) -> None:
    """Recording on and off, turn by turn on the same prompts."""
    policy = parse_policy("fixed_length:draft_length=2")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(6):
        for prompt in load_prompts("held_out", 8, skip=64):
            request = Request(
                prompt_id=prompt.prompt_id,
                tokens=session.encode(prompt.text),
                max_new_tokens=96,
                sampling=Sampling(1.0),
                ignore_eos=True,
            )
            for is_recording in (repeat % 2 == 0, repeat % 2 == 1):
                started = time.perf_counter()
                session.run(request, policy, is_recording=is_recording)
                seconds[is_recording].append(time.perf_counter() - started)
    ratios = np.array(seconds[True]) / np.array(seconds[False])
    middle = float(np.median(ratios))
    spread = 1.25 * float(np.std(ratios)) / len(ratios) ** 0.5
    print(f"\nrecording / not recording: {middle:.4f} +- {spread:.4f} (median of {len(ratios)} pairs)")
    assert middle < 1.1


def test_exploration_is_faster_than_execution(run: Run, tmp_path: Path) -> None:
    """Simulated tokens a second against executed ones."""
    from analysis.check.predict import predict
    from sim.latency.fitted import FittedLatency
    from traces.fits.calibration import calibrate

    traces = record_run(
        record_settings(policies=("autoregressive",), num_prompts=4, capacity=512, temperatures=(1.0,)),
        tmp_path / "run",
    ).traces()
    latency = FittedLatency(calibrate(run))
    started = time.perf_counter()
    predict([parse_policy("fixed_length:draft_length=4")], traces, latency, baseline="none")
    rate = sum(trace.num_tokens for trace in traces) / (time.perf_counter() - started)
    print(f"\nsimulated {rate:.0f} tokens/s")
    assert rate > 1000


def cores_are_free(*, wanted: int = 2, span_s: float = 0.5, max_share: float = 0.15) -> bool:
    """Whether `wanted` cores exist and others use at most `max_share` of one core, watched for span_s seconds."""
    if num_cores() < wanted:
        return False
    meter = ContentionMeter([])
    time.sleep(span_s)
    return num_cores() - meter.lap().other_share >= wanted - max_share

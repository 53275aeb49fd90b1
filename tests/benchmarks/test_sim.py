"""Speed of the simulator; run on free cores with -m benchmark.

Goals on a free core: the engine above 250,000 tokens/s, a thousand policies in less than 20 s. On a busy
machine add --benchmark-timer=time.process_time.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
import pytest
import simpy
from pytest_benchmark.fixture import BenchmarkFixture

from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.engine import simulate
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from traces.schema import RequestTrace

LATENCY = ConstantLatency(draft_s=0.002, verify_s=0.02, host_s=0.0005)


def traces_of(num_requests: int, num_tokens: int, alpha: float) -> list[RequestTrace]:
    rngs = np.random.default_rng(0).spawn(num_requests)
    return [Geometric(alpha=alpha).sample(num_tokens, index, rng) for index, rng in enumerate(rngs)]


def thousand_policies() -> list[Policy]:
    """Fixed lengths, PEARL, and confidence rules over thresholds, lengths and signals."""
    lengths = range(1, 17)
    fixed: list[Policy] = [FixedLength(length) for length in lengths] + [Pearl(length) for length in lengths]
    thresholds = np.linspace(0.05, 0.95, 21).tolist()
    rules: list[Policy] = [
        ConfidenceStop(threshold, length, kind)
        for threshold in thresholds
        for length in lengths
        for kind in ConfidenceSignal
    ]
    return [*fixed, *rules][:1000]


@pytest.mark.benchmark
@pytest.mark.parametrize(("num_requests", "num_tokens"), [(250, 200), (1, 50_000)], ids=["stream", "one request"])
def test_tokens_per_second_of_the_engine(benchmark: BenchmarkFixture, num_requests: int, num_tokens: int) -> None:
    """Beside bare SimPy on as many rounds, which decides nothing: 5 draft events and 1 verification each."""
    traces = traces_of(num_requests, num_tokens, alpha=0.9)
    run = simulate(FixedLength(5), traces, LATENCY, record_ops=False)
    benchmark.pedantic(lambda: simulate(FixedLength(5), traces, LATENCY, record_ops=False), rounds=15)
    benchmark.extra_info["tokens_per_s"] = num_requests * num_tokens / benchmark.stats["min"]
    bare_s = min(_bare_seconds(len(run.rounds)) for _ in range(15))
    benchmark.extra_info["bare_simpy_tokens_per_s"] = num_requests * num_tokens / bare_s


def _bare_seconds(num_rounds: int) -> float:
    env = simpy.Environment()

    def rounds() -> Generator[simpy.Timeout]:
        for _ in range(num_rounds):
            for _ in range(5):
                yield env.timeout(0.002)
            yield env.timeout(0.02)

    env.process(rounds())
    start = time.perf_counter()
    env.run()
    return time.perf_counter() - start


@pytest.mark.benchmark
def test_a_thousand_policies_on_twenty_thousand_tokens(benchmark: BenchmarkFixture) -> None:
    traces, policies = traces_of(100, 200, alpha=0.8), thousand_policies()
    benchmark.pedantic(lambda: sweep(policies, traces, LATENCY), rounds=3)
    start = time.perf_counter()
    for policy in policies[::100]:
        simulate(policy, traces, LATENCY, record_ops=False)
    engine_s = (time.perf_counter() - start) * len(policies) / len(policies[::100])
    benchmark.extra_info["engine_over_sweep"] = engine_s / benchmark.stats["min"]

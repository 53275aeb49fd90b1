"""Speed and memory of the serving simulator; run on free cores with -m benchmark.

Goals, on one free core, with draft and verification as events under a queue: 0.4 M simulated output tokens a second at 8
running requests and 2 M at 128 with speculative sampling, 0.4 M with SpecBranch at 64; a million requests in 500 MiB.
On a busy machine add --benchmark-timer=time.process_time.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from analysis.plan.methods import drawn_traces
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.serving.cluster import ServedRun, serve
from sim.serving.costs import SummedCosts
from sim.serving.rounds.base import RoundSource
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.rounds.run_lengths import drawn_runs
from sim.serving.settings import Placement, Server
from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts
from traces.workload import Workload

COSTS = StepCosts(
    target=ForwardCost(floor_s=0.02, token_s=3e-5, context_s=3e-8, request_s=1e-5),
    draft=ForwardCost(floor_s=0.002, token_s=3e-6, context_s=3e-9),
)
OUTPUT_TOKENS = 200
ACCEPTANCE = AcceptanceByPosition((0.8,))


def served(batch: int, source: RoundSource, placement: Placement, num_requests: int, output_tokens: int) -> ServedRun:
    """A closed loop of `batch` clients, so that so many requests run at once."""
    workload = Workload(
        arrival_s=np.zeros(num_requests),
        prompt_tokens=np.full(num_requests, 145),
        output_tokens=np.full(num_requests, output_tokens),
        max_concurrency=batch,
    )
    server = Server(max_num_seqs=batch, kv_tokens=2000 * batch, lookahead_tokens=4)
    return serve(workload, server, lambda: SummedCosts(COSTS), lambda: source, placement=placement)


def speculative_sampling(num_requests: int) -> RoundSource:
    table = drawn_runs(ACCEPTANCE.conditional, num_requests, OUTPUT_TOKENS, np.random.default_rng(0))
    return LengthRounds(table, FixedLengthRule(4))


@pytest.mark.benchmark
@pytest.mark.parametrize(("batch", "num_requests"), [(8, 800), (128, 12_800)])
def test_tokens_per_second_of_speculative_sampling(benchmark: BenchmarkFixture, batch: int, num_requests: int) -> None:
    source = speculative_sampling(num_requests)
    benchmark.pedantic(lambda: served(batch, source, Placement.IN_TURN, num_requests, OUTPUT_TOKENS), rounds=7)
    benchmark.extra_info["tokens_per_s"] = num_requests * OUTPUT_TOKENS / benchmark.stats["min"]


@pytest.mark.benchmark
def test_tokens_per_second_of_specbranch(benchmark: BenchmarkFixture) -> None:
    """Its rounds are planned within what is timed."""
    batch, num_requests = 64, 3200
    traces = drawn_traces(ACCEPTANCE, 0)
    policy = SpecBranch(draft_length=4, uses_hrad=False)

    def run() -> ServedRun:
        source = PlannedRounds(Plan([policy], traces))
        return served(batch, source, Placement.OWN_DEVICE, num_requests, OUTPUT_TOKENS)

    benchmark.pedantic(run, rounds=5)
    benchmark.extra_info["tokens_per_s"] = num_requests * OUTPUT_TOKENS / benchmark.stats["min"]


MILLION = """
import resource, sys
import tests.benchmarks.test_serving as this
source = this.LengthRounds(
    this.drawn_runs((0.8,), 1_000_000, 8, this.np.random.default_rng(0)), this.FixedLengthRule(4)
)
run = this.served(128, source, this.Placement.IN_TURN, 1_000_000, 8)
assert run.num_finished == 1_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.benchmark
def test_memory_of_a_million_requests(record_property: pytest.RecordProperty) -> None:
    """In MiB, in a process of its own, the interpreter and all imports included."""
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    peak_mib = float(done.stdout)
    record_property("peak_mib", peak_mib)
    print(f"peak memory {peak_mib:.0f} MiB")
    assert peak_mib < 500

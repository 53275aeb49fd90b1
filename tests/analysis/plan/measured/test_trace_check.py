"""Requests recorded one by one: a made-up server is found again, and measured ones are predicted from their first half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.plan.measured.trace_check import check_trace, write_trace_check
from sim.serving.cluster import serve
from sim.serving.costs import SummedCosts
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.run_lengths import RunLengths
from sim.serving.settings import Server
from traces.fits.step_costs import ForwardCost, StepCosts, read_step_costs
from traces.importers.traffic.catalog import read_measured
from traces.importers.traffic.measured import MeasuredRequests
from traces.workload import Workload

TRACES = Path(__file__).parents[5] / "shared" / "data" / "traces"
TRUTH = StepCosts(target=ForwardCost(floor_s=0.02, token_s=8e-5, context_s=4e-7, request_s=2e-5))


def made_up(kv_tokens: int | None, count: int = 80) -> MeasuredRequests:
    """What a server of these costs would have written down."""
    rng = np.random.default_rng(3)
    workload = Workload(
        arrival_s=np.cumsum(rng.exponential(0.05, count)),
        prompt_tokens=rng.integers(50, 400, count),
        output_tokens=rng.integers(20, 120, count),
    )
    nothing = RunLengths(np.zeros(200, dtype=np.int64), np.zeros(count, dtype=np.int64))
    run = serve(
        workload,
        Server(max_num_seqs=256, max_num_batched_tokens=2048, kv_tokens=kv_tokens, watermark=0.0, schedules_ahead=True),
        lambda: SummedCosts(TRUTH),
        lambda: LengthRounds(nothing, FixedLengthRule(0)),
    )
    return MeasuredRequests(
        workload=workload,
        queued_s=run.sent_s,
        scheduled_s=run.first_s - 1e-3,
        first_token_s=run.first_s,
        last_token_s=run.last_s,
    )


@pytest.mark.parametrize("kv_tokens", [None, 6000])
def test_a_made_up_server_is_found_again(kv_tokens: int | None, tmp_path: Path) -> None:
    measured = made_up(kv_tokens)
    check = check_trace(measured)
    assert abs(check.errors.mean_tpot_error) < 0.02
    assert abs(check.errors.p95_tpot_error) < 0.05
    assert abs(check.errors.mean_ttft_error) < 0.15
    if kv_tokens is not None:
        assert check.errors.kv_tokens is not None
        assert check.errors.kv_tokens == pytest.approx(kv_tokens, rel=0.2)
    for tokens, context, requests in ((10, 2000, 10), (60, 15_000, 60)):
        expected = TRUTH.target_s(tokens, context, requests)
        assert check.costs.target_s(tokens, context, requests) == pytest.approx(expected, rel=0.1)
    write_trace_check(check, tmp_path)
    assert read_step_costs(tmp_path / "step_costs.json") == check.costs


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 requests to fit and to predict, but got 12"):
        check_trace(made_up(None, 12))


@pytest.mark.slow
@pytest.mark.skipif(not TRACES.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("name", ["rtx4090", "rtxpro6000"])
def test_the_second_half_of_a_measured_run_is_predicted(name: str) -> None:
    """vLLM 0.19 with Llama-3.1-8B under more requests than it holds."""
    errors = check_trace(read_measured(TRACES / f"vllm_real_{name}_llama31_8b.jsonl.gz")).errors
    assert abs(errors.mean_tpot_error) < 0.05
    assert abs(errors.p95_tpot_error) < 0.10

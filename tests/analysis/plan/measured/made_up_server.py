"""A made-up server of known costs, whose benchmarks are simulated: what a fit should find again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.plan.measured.benches import VLLM, simulate_bench
from sim.serving.settings import Server
from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts
from traces.importers.server_bench import ServerBench

TARGET = ForwardCost(floor_s=0.020, token_s=8e-5, sharpness=4.0, context_s=1e-7, request_s=2e-5, uncaptured_s=3e-3)
DRAFT = ForwardCost(floor_s=0.0015, token_s=1e-5, sharpness=4.0, context_s=3e-8, request_s=1e-5)
ACCEPTANCE = AcceptanceByPosition((0.7, 0.75, 0.8, 0.8, 0.8, 0.8))
COLUMNS = (
    "dataset,method,draft,k,kv_tokens,n_requests,max_concurrency,request_rate,duration_s,input_tokens,output_tokens,"
    "output_tok_s,mean_tpot_ms,median_ttft_ms,per_position_pct"
)


def bench(draft_length: int, max_concurrency: int) -> ServerBench:
    """A short benchmark of the made-up server, not yet run."""
    num = max(8, 3 * max_concurrency)
    return ServerBench(
        dataset="made up",
        method="draft_model" if draft_length else "none",
        draft="Small" if draft_length else "",
        draft_length=draft_length,
        kv_tokens=9000 if draft_length else 16000,
        num_requests=num,
        max_concurrency=max_concurrency,
        arrivals_per_s=max_concurrency,
        duration_s=1.0,
        input_tokens=100.0 * num,
        output_tokens=40.0 * num,
        output_tokens_per_s=1.0,
        mean_tpot_s=1.0,
        median_ttft_s=1.0,
        acceptance=ACCEPTANCE if draft_length else None,
    )


def measure(asked: ServerBench, engine: Server = VLLM) -> ServerBench:
    """This benchmark on the made-up server, with luck of its own."""
    costs = StepCosts(target=TARGET, draft=DRAFT if asked.draft else None, host_s=1e-3 if asked.draft else 0.0)
    seed = 1000 + asked.draft_length + 10 * asked.max_concurrency
    ran = simulate_bench(asked, costs, engine=engine, seed=seed)
    return replace(
        asked,
        duration_s=ran.duration_s,
        output_tokens_per_s=ran.output_tokens_per_s,
        mean_tpot_s=ran.mean_tpot_s,
        median_ttft_s=ran.median_ttft_s,
    )


def row_of(ran: ServerBench) -> str:
    """As a line of a table."""
    marginal = ";".join(f"{100 * chance:.2f}" for chance in ACCEPTANCE.marginal(ran.draft_length))
    return (
        f"{ran.dataset},{ran.method},{ran.draft},{ran.draft_length},{ran.kv_tokens},{ran.num_requests},"
        f"{ran.max_concurrency},{ran.arrivals_per_s},{ran.duration_s:.3f},{ran.input_tokens},{ran.output_tokens},"
        f"{ran.output_tokens_per_s:.3f},{ran.mean_tpot_s * 1e3:.4f},{ran.median_ttft_s * 1e3:.3f},{marginal}"
    )


def write_table(path: Path, lengths: Sequence[int], loads: Sequence[int]) -> Path:
    """A table of benchmarks of all these draft lengths at all these concurrencies."""
    rows = [row_of(measure(bench(length, load))) for length in lengths for load in loads]
    path.write_text("\n".join([COLUMNS, *rows]) + "\n", encoding="utf-8")
    return path

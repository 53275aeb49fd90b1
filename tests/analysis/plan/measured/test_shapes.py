"""Shapes of measured servers that a few of their numbers predict: contexts, batches of parallel drafting, a consumer GPU.

The tables say neither lengths nor (but for one) acceptance, so that only shapes are claimed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim.decoding.policies.catalog import parse_policy
from sim.serving.cluster import serve
from sim.serving.costs import SummedCosts
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.settings import Placement, Server
from traces.fits.step_cost_fit import Measurement, StepCostFit, draft_prior, fit_step_costs, target_prior, total_s
from traces.fits.step_costs import AcceptanceByPosition, ForwardCost, StepCosts
from traces.schema import RequestTrace
from traces.workload import Workload

SERVING = Path(__file__).parents[4] / ".." / "shared" / "data" / "serving"


def rows_of(name: str) -> list[dict[str, str]]:
    path = SERVING / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def step(requests: int, draft_length: int, context_tokens: float, seconds: float = 1.0) -> Measurement:
    """One step of a full batch: draft_length forwards of the draft, then the target over all of their tokens."""
    sums = [requests * context_tokens, float(requests)]
    return Measurement(
        seconds=seconds,
        target=np.array([[requests * (draft_length + 1), *sums, 1.0]]),
        draft=np.array([[requests, *sums, draft_length]]) if draft_length else None,
        draft_name="draft" if draft_length else "",
        relative_error=0.03,
    )


def fit(steps: list[Measurement], *, floor_s: float, draft_floor_s: float) -> StepCostFit:
    target = target_prior(floor_s)
    return fit_step_costs(steps, target, {"draft": draft_prior(draft_floor_s, target.guess)})


def step_s(fitted: StepCostFit, requests: int, draft_length: int, context_tokens: float) -> float:
    return total_s(step(requests, draft_length, context_tokens), fitted.step_costs("draft" if draft_length else ""))


def test_speculation_wins_at_long_contexts_what_it_loses_at_short_ones() -> None:
    """Gemma-4-31B, 256 requests: fitted without drafts at every context, with K = 3 at 400 tokens alone.

    The context is read once a step for K + 1 tokens of each request, so that a step of K = 3 costs as much more at any
    context. The acceptance length is unknown; 3 is assumed.
    """
    rows = rows_of("vllm_gemma4_31b_fp8_h100nvl_by_context.csv")
    length, num = 3.0, 256
    plain = [step(num, 0, float(row["context_tokens"]), num / float(row["none_tok_s"])) for row in rows]
    shortest = step(num, 3, 400.0, num * length / float(rows[0]["k3_tok_s"]))
    fitted = fit([*plain, shortest], floor_s=0.04, draft_floor_s=0.003)
    contexts = [float(row["context_tokens"]) for row in rows]
    gains = [length * step_s(fitted, num, 0, context) / step_s(fitted, num, 3, context) for context in contexts]
    measured = [float(row["k3_tok_s"]) / float(row["none_tok_s"]) for row in rows]
    assert gains == sorted(gains)
    assert measured == sorted(measured)
    assert gains[0] < 1 < gains[-1], f"predicted {np.round(gains, 2)}, measured {np.round(measured, 2)}"
    assert gains == pytest.approx(measured, rel=0.15)


def test_speculation_stops_paying_at_eight_requests_on_a_consumer_gpu() -> None:
    """Qwen2.5-1.5B on an RTX 4060: fitted to K = 0 and, at 1, 8 and 48 requests, to K = 1 and 5; K = 3 was never fitted."""
    rows = rows_of("vllm_qwen25_1p5b_rtx4060_by_concurrency.csv")
    acceptance = AcceptanceByPosition.from_marginal([0.78, 0.65, 0.50])
    lengths = {k: acceptance.mean_acceptance_length(k) if k else 1.0 for k in (0, 1, 3, 5)}
    loads = [int(name[1:]) for name in rows[0] if name != "k"]
    measured = {(int(row["k"]), load): float(row[f"c{load}"]) for row in rows for load in loads}
    steps = [
        step(load, k, 300.0, load * lengths[k] / rate)
        for (k, load), rate in measured.items()
        if k == 0 or (k != 3 and load in (1, 8, 48))
    ]
    fitted = fit(steps, floor_s=0.013, draft_floor_s=0.003)
    predicted = {(k, load): load * lengths[k] / step_s(fitted, load, k, 300.0) for k, load in measured}
    errors = [predicted[3, load] / measured[3, load] - 1 for load in loads]
    assert np.abs(errors).mean() < 0.10, np.round(errors, 3)
    for load in loads:
        pays, paid = predicted[3, load] > predicted[0, load], measured[3, load] > measured[0, load]
        assert pays == paid or abs(measured[3, load] / measured[0, load] - 1) < 0.1, load
    assert predicted[3, 4] > predicted[0, 4]
    assert predicted[3, 16] < predicted[0, 16]


def test_the_gain_of_parallel_drafting_falls_with_the_batch(make_trace: Callable[..., RequestTrace]) -> None:
    """Llama-3.3-70B on eight devices, PEARL-like drafting of five steps; only plain decoding was fitted.

    Acceptance is unknown: one chance is taken that gives the measured gain of one request.
    """
    rows = [row for row in rows_of("specactor_llama33_70b_tp8_1b_by_batch.csv") if row["task"] == "math"]
    batches = [int(row["batch"]) for row in rows]
    plain = [
        step(batch, 0, 500.0, 1 / float(row["plain_tok_s_per_request"]))
        for batch, row in zip(batches, rows, strict=True)
    ]
    target = fit_step_costs(plain, target_prior(0.015)).target
    costs = StepCosts(target=target, draft=ForwardCost(floor_s=0.0025, token_s=2e-6))
    traces = [make_trace(num_tokens=200, seed=seed, acceptance=0.74, tail_depth=40) for seed in range(16)]
    plan = Plan([parse_policy("pearl:draft_length=5")], traces)

    def gain(batch: int) -> float:
        num = max(batch, len(traces))
        workload = Workload(
            arrival_s=np.zeros(num),
            prompt_tokens=np.full(num, 400),
            output_tokens=np.full(num, 200),
            max_concurrency=batch,
        )
        run = serve(
            workload,
            Server(max_num_seqs=batch, delivers_after_drafting=False, joins_draft_prefill=False),
            lambda: SummedCosts(costs),
            lambda: PlannedRounds(plan),
            placement=Placement.OWN_DEVICE,
        )
        tpot_s = float(((run.last_s - run.first_s) / 199).mean())
        return costs.target_s(batch, 500 * batch, batch) / tpot_s

    gains = [gain(batch) for batch in batches]
    measured = [float(row["parallel_tok_s_per_request"]) / float(row["plain_tok_s_per_request"]) for row in rows]
    told = f"predicted {np.round(gains, 2)}, measured {np.round(measured, 2)}"
    assert gains[0] == pytest.approx(measured[0], rel=0.1), told
    assert gains[-1] < 0.9 * gains[0], told
    assert all(later < earlier * 1.03 for earlier, later in pairwise(gains)), told

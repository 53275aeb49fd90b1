"""One simulated run of a method under a traffic, as tasks of a plan: plain arguments in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.plan.machines import Machine
from analysis.plan.methods import Method, source_of
from sim.serving.cluster import Router, ServedRun, serve
from sim.serving.costs import SummedCosts
from sim.serving.settings import Placement, Server
from traces.fits.step_costs import AcceptanceByPosition
from traces.metrics.serving import Objectives, RequestTimes, ServingSummary, summarise_requests
from traces.workload import Workload


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run in numbers. mean_running: requests in the batch, over the steps; kv_share: of the memory, over the busy time.

    acceptance_length: tokens a request and round. busy_s_per_token: of the replicas, for each output token, whatever devices
    they are made of. draft_share: of the busy time in which the draft worked.
    """

    summary: ServingSummary
    itl_s: tuple[float, float, float]
    mean_running: float
    max_running: int
    kv_share: float
    acceptance_length: float
    num_preemptions: int
    busy_s_per_token: float
    draft_share: float
    meets_each: dict[str, float]


def run_method(
    method: Method,
    workload: Workload,
    machine: Machine,
    server: Server,
    acceptance: AcceptanceByPosition,
    objectives: Objectives,
    *,
    seed: int,
    num_replicas: int = 1,
    router: Router = Router.LEAST_OUTSTANDING_TOKENS,
) -> RunResult:
    """Serve the workload once. server: as the engine is started; its memory is the machine's, and what the draft asks of it is
    the method's. Raises ValueError where a request does not fit the memory.
    """
    is_shared = method.placement is Placement.IN_TURN
    kv_tokens = machine.kv_tokens_with_draft if method.drafts and is_shared else machine.kv_tokens
    source = source_of(method, acceptance, workload, seed)
    server = replace(
        server,
        kv_tokens=kv_tokens,
        lookahead_tokens=method.rule.max_length if method.rule is not None else 0,
        delivers_after_drafting=is_shared,
        joins_draft_prefill=is_shared,
    )
    run = serve(
        workload,
        server,
        lambda: SummedCosts(machine.costs),
        source,
        num_replicas=num_replicas,
        placement=method.placement,
        router=router,
    )
    return _result(run, objectives, kv_tokens)


def _result(run: ServedRun, objectives: Objectives, kv_tokens: int) -> RunResult:
    times = RequestTimes(sent_s=run.sent_s, first_s=run.first_s, last_s=run.last_s, num_output=run.num_output)
    summary = summarise_requests(times, objectives)
    steps = sum(totals.num_steps for totals in run.replicas)
    request_steps = sum(totals.num_request_steps for totals in run.replicas)
    busy_s = sum(totals.busy_s for totals in run.replicas)
    draft_s = sum(totals.draft_busy_s for totals in run.replicas)
    each = {
        name: float(times.meets(Objectives(**{name: limit})).mean())
        for name in ("ttft_s", "tpot_s", "e2el_s")
        if (limit := getattr(objectives, name)) is not None
    }
    return RunResult(
        summary=summary,
        itl_s=(run.gaps.quantile_s(0.5), run.gaps.quantile_s(0.9), run.gaps.quantile_s(0.99)),
        mean_running=request_steps / max(steps, 1),
        max_running=max(totals.max_running for totals in run.replicas),
        kv_share=sum(totals.kv_token_s for totals in run.replicas) / max(busy_s * kv_tokens, 1e-12),
        acceptance_length=sum(totals.num_emitted for totals in run.replicas) / max(request_steps, 1),
        num_preemptions=sum(totals.num_preemptions for totals in run.replicas),
        busy_s_per_token=busy_s / max(int(np.sum(run.num_output)), 1),
        draft_share=draft_s / max(busy_s, 1e-12),
        meets_each=each,
    )

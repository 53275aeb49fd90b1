"""Run folders with rounds, operations and times, made by the simulator: as an executor writes them, without models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.decoding.acceptance_models import Chained
from sim.decoding.policies.catalog import parse_policy
from sim.engine import simulate
from sim.latency.constant import ConstantLatency
from tests.analysis.made_up_run import CHAIN, seed_trace
from traces.folder.writer import RunWriter
from traces.schema import RequestTrace

POLICIES = ("autoregressive", "fixed_length:draft_length=3", "pearl:draft_length=3")
LATENCY = ConstantLatency(
    draft_s=0.002, verify_s=0.010, host_s=0.0005, draft_prefill_s=0.005, target_prefill_s=0.02, branch_s=0.0002
)


def made_up_traces(num: int, *, temperature: float = 1.0, num_tokens: int = 40, seed: int = 0) -> list[RequestTrace]:
    """Sampled outcomes of a made-up pair."""
    rng = np.random.default_rng(seed)
    model = Chained(CHAIN, [seed_trace(rng, temperature)])
    return [model.sample(num_tokens, index, rng) for index in range(num)]


def write_pair(
    folder: Path,
    *,
    policies: Sequence[str] = POLICIES,
    latency: ConstantLatency = LATENCY,
    num_requests: int = 10,
    temperatures: Sequence[float] = (1.0,),
    prompt: str = "prompt",
    target: str = "embedded",
    num_unclean: int = 0,
    is_cut_short: bool = False,
) -> Path:
    """Every policy on the same requests, one after another in turns of the whole set. num_unclean: of the first requests."""
    config = {"pair": {"target": target, "draft": "embedded"}, "decoding": {"policies": list(policies)}}
    rng = np.random.default_rng(7)
    try:
        with RunWriter(folder, config=config, meta={"kind": "executed", "devices": ["sim"]}) as writer:
            first, begun_s = 0, 0.0
            for temperature in temperatures:
                traces = made_up_traces(num_requests, temperature=temperature)
                for label in policies:
                    run = simulate(parse_policy(label), traces, latency, label=label)
                    noise = float(rng.gamma(4000, 1 / 4000))
                    _write(writer, run, traces, first, begun_s, noise, prompt, num_unclean)
                    first += len(traces)
                    begun_s += noise * max(request.finish_s for request in run.requests)
            if is_cut_short:
                raise KeyboardInterrupt
            writer.finish({"contention": {"mean_other_share": 0.0, "worst_other_share": 0.0}})
    except KeyboardInterrupt:
        pass
    return folder


def _write(writer, run, traces, first, begun_s, noise, prompt, num_unclean) -> None:  # type: ignore[no-untyped-def]
    def moved(record, *names):  # type: ignore[no-untyped-def]
        times = {name: begun_s + noise * getattr(record, name) for name in names}
        return record._replace(**times)

    writer.ops([moved(op, "start_s", "end_s")._replace(request_id=first + op.request_id) for op in run.ops])
    rounds = []
    for round_, times in run.rounds:
        spans = {name: noise * getattr(times, name) for name in ("draft_s", "verify_s")}
        rounds.append(
            (round_._replace(request_id=first + round_.request_id), moved(times, "start_s", "end_s")._replace(**spans))
        )
    writer.rounds(rounds)
    for request in run.requests:
        record = moved(request, "arrival_s", "first_token_s", "finish_s")
        writer.request(
            record._replace(
                request_id=first + request.request_id,
                prompt_id=f"{prompt}-{request.request_id}",
                is_clean=first + request.request_id >= num_unclean,
                tokens_sha256=str(request.request_id),
            )
        )
    for trace in traces:
        writer.trace(replace(trace, request_id=first + trace.request_id, prompt_id=f"{prompt}-{trace.request_id}"))

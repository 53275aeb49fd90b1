"""A run folder without models: sampled traces, and operations with simple times, so that it calibrates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sim.decoding.acceptance_models import Chained
from traces.fits.acceptance.chain import AcceptanceChain
from traces.folder.writer import RunWriter
from traces.schema import Actor, FinishReason, Op, OpKind, OpShape, RequestRecord, RequestTrace, Signal, op_of

TAIL_DEPTH = 12
CHAIN = AcceptanceChain(name="made up", hazards=(0.5, 0.75), request_sd=0.3)


def seed_trace(rng: np.random.Generator, temperature: float) -> RequestTrace:
    """A source of ranks and signals: right tokens have larger margins."""

    def signal(is_right: bool) -> Signal:
        margin = float(rng.exponential(2.0 if is_right else 0.7))
        return Signal(1 - float(np.exp(-margin)), float(rng.exponential(1.0)), margin)

    ranks = tuple(0 if right else int(rng.geometric(0.5)) for right in rng.random(400) < 0.6)
    ends = [*(index for index, rank in enumerate(ranks) if rank), len(ranks)]
    return RequestTrace(
        request_id=0,
        prompt_id="seed",
        num_prompt_tokens=20,
        max_new_tokens=len(ranks),
        temperature=temperature,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=ranks,
        signals=tuple(signal(rank == 0) for rank in ranks),
        tails={end: tuple(signal(bool(rng.random() < 0.4)) for _ in range(TAIL_DEPTH)) for end in ends},
        tail_depth=TAIL_DEPTH,
    )


def write_run(
    folder: Path,
    *,
    num_requests: int = 12,
    num_tokens: int = 60,
    sequences_per_prompt: int = 1,
    temperatures: tuple[float, ...] = (1.0,),
    seed: int = 0,
    num_unclean: int = 0,
) -> Path:
    """Requests of a Markov chain with a request effect; draft forwards cost a fifth of target forwards. num_unclean: of the
    first requests, which ran beside other load."""
    rng = np.random.default_rng(seed)
    with RunWriter(folder, config={}, meta={"kind": "executed"}) as writer:
        request_id = 0
        for temperature in temperatures:
            model = Chained(CHAIN, [seed_trace(rng, temperature)])
            for index in range(num_requests):
                trace = model.sample(num_tokens, request_id, rng)
                writer.trace(trace)
                record = record_of(trace, f"prompt-{index // sequences_per_prompt}")
                writer.request(record._replace(is_clean=request_id >= num_unclean))
                writer.ops(operations(request_id, rng))
                request_id += 1
        writer.finish({})
    return folder


def record_of(trace: RequestTrace, prompt_id: str) -> RequestRecord:
    """The record beside a made-up trace."""
    return RequestRecord(
        request_id=trace.request_id,
        prompt_id=prompt_id,
        policy="autoregressive",
        repeat=0,
        temperature=trace.temperature,
        top_k=0,
        top_p=1.0,
        seed=0,
        noise_key=0,
        arrival_s=0.0,
        first_token_s=0.0,
        finish_s=1.0,
        num_prompt_tokens=trace.num_prompt_tokens,
        num_output_tokens=trace.num_tokens,
        max_new_tokens=trace.max_new_tokens,
        finish_reason="max_tokens",
        tokens_sha256=str(trace.request_id),
        is_clean=True,
    )


def operations(request_id: int, rng: np.random.Generator) -> list[Op]:
    """One of each kind, and some widths."""
    now, ops = 0.0, []

    def run(actor: str, kind: str, seconds: float, num_tokens: int, num_branches: int) -> None:
        nonlocal now
        seconds *= float(rng.gamma(400, 1 / 400))
        context = int(rng.integers(20, 300))
        shape = OpShape(Actor(actor), OpKind(kind), num_tokens, num_branches, context)
        ops.append(op_of(request_id, 0, "sim", shape, now, now + seconds, is_beside=kind == "branch"))
        now += seconds

    run("target", "prefill", 0.02, 20, 1)
    run("draft", "prefill", 0.004, 20, 1)
    for width in range(1, 9):
        run("target", "verify", 0.005 * (1 + 0.02 * width), width, 1)
        run("draft", "draft", 0.001, 1, 1)
        run("draft", "branch", 0.001 * (1 + 0.05 * width), 1, width)
        run("host", "host", 0.0002, width, width)
    return ops

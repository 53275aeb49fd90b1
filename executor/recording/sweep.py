"""A sweep: every width, branch count and context of a grid, timed alone and beside the other model, as one run folder.

A decoding run meets the widths that its policy asks for, in the contexts that its prompts bring. A sweep asks for all of
them, so that calibration can tell their effects apart; the words mean nothing, only the times do. The same calls serve
two processes on a CPU and two streams on a GPU.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch

from executor.pair import Session
from executor.recording.batches import BatchGrid, check_amounts, made_up_tokens, time_batches
from executor.recording.contention import ContentionMeter
from executor.recording.settings import RecordSettings, config_of
from executor.request import Request
from executor.roles.draft import Draft
from executor.roles.target import Target
from sim.decoding.policies.base import Needs
from traces.fits.batched_ops import BATCH_SWEEP
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.progress import Report, silent
from traces.schema import Actor, FinishReason, Op, OpKind, OpShape, RequestRecord, Sampling, op_of

_WARM_UPS = 3


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a sweep asks for: each context with each number of new tokens and of branches.

    contexts: cached tokens before. widths: rows of a verification. branch_counts: rows of a batched draft step.
    num_steps: draft steps of one measurement. num_repeats: of each, after a warm-up of three.
    """

    contexts: tuple[int, ...] = (64, 256, 768)
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 12, 16)
    branch_counts: tuple[int, ...] = (1, 2, 4, 8)
    num_steps: int = 4
    num_repeats: int = 30

    def __post_init__(self) -> None:
        check_amounts(self, "contexts", "widths", "branch_counts")
        if self.num_steps < 1 or self.num_repeats < 1:
            raise ValueError("num_steps and num_repeats of a sweep must be at least 1.")


def record_sweep(
    settings: RecordSettings,
    output_dir: str | Path,
    grid: Grid,
    *,
    batches: BatchGrid | None = None,
    session: Session | None = None,
    progress: Report = silent,
) -> Run:
    """Time a grid with the pair of `settings` (its prompts and policies are not used); returns the run folder.

    Its ops are those of a decoding run, so that `traces.fits.calibration.calibrate` reads them. One request a context.
    batches: also time steps of several requests, each model alone, once the session is closed; a request a context and model.
    """
    needed = max(grid.contexts) + max(grid.widths) + grid.num_steps + 2
    if batches is not None:
        needed = max(needed, batches.longest)
    if needed > (settings.pair.engine.capacity or needed):
        raise ValueError(
            f"this sweep needs a capacity of {needed} tokens, but got {settings.pair.engine.capacity}; use a larger one."
        )
    config = {**config_of(settings), "sweep": asdict(grid)} | ({"batches": asdict(batches)} if batches else {})
    writer = RunWriter(output_dir, config=config, meta={"kind": "sweep"})
    num_contexts = len(grid.contexts) + (2 * len(batches.contexts) if batches else 0)
    with writer:
        with nullcontext(session) if session is not None else Session(settings.pair) as session:
            writing = _Writing(writer, ContentionMeter([session.target.pid]), num_contexts, progress)
            for request_id, context in enumerate(grid.contexts):
                writing.write(f"sweep:{context}", "sweep", context, _Sweeper(session, grid, context, request_id).run())
            devices = list(session.devices)
        if batches is not None:
            writing.meter = ContentionMeter([])

            def take(actor: Actor, context: int, ops: list[Op]) -> None:
                writing.write(f"{actor.value}:{context}", BATCH_SWEEP, context, ops)

            time_batches(settings.pair, batches, take, first_request=len(grid.contexts))
        contended = {"mean_other_share": fmean(writing.shares), "worst_other_share": max(writing.shares)}
        writer.finish({"contention": contended}, meta={"devices": devices})
    return read_run(output_dir)


class _Writing:
    """Operations of one context after another, as requests of the run folder."""

    def __init__(self, writer: RunWriter, meter: ContentionMeter, num_contexts: int, progress: Report) -> None:
        self.meter, self.shares = meter, list[float]()
        self._writer, self._num_contexts, self._progress = writer, num_contexts, progress
        self._start_s = self._began_s = time.perf_counter()

    def write(self, prompt_id: str, policy: str, context: int, ops: list[Op]) -> None:
        """Take what was timed since the last call."""
        start_s, request_id = self._start_s, len(self.shares)
        self._writer.ops([op._replace(start_s=op.start_s - start_s, end_s=op.end_s - start_s) for op in ops])
        contention = self.meter.lap()
        self.shares.append(contention.other_share)
        span = (self._began_s - start_s, time.perf_counter() - start_s)
        self._writer.request(_record_of(request_id, prompt_id, policy, context, span, contention.is_clean))
        self._writer.flush()
        self._progress(request_id + 1, self._num_contexts)
        self._began_s = time.perf_counter()


class _Sweeper:
    """One context's measurements."""

    def __init__(self, session: Session, grid: Grid, context: int, request_id: int) -> None:
        self._draft: Draft = session.draft
        self._target: Target = session.target
        self._grid, self._context, self._request_id = grid, context, request_id
        self._draft_device, self._target_device = session.devices
        self._tokens = made_up_tokens(session.engine, context + max(grid.widths) + 1)
        self._ops: list[Op] = []

    @torch.inference_mode()
    def run(self) -> list[Op]:
        """All of them; times are of time.perf_counter."""
        grid, context = self._grid, self._context
        request = Request(
            prompt_id=f"sweep:{context}",
            tokens=tuple(self._tokens[: context + 1]),
            max_new_tokens=max(grid.widths) + grid.num_steps + 1,
            sampling=Sampling(0.0),
            ignore_eos=True,
        )
        self._target.begin(request)
        self._draft.begin(request, Needs(num_alternatives=max(grid.branch_counts) + 1), None)
        self._draft.prefill()
        self._target.wait_prefill()
        self._draft.take_forwards()
        for index in range(grid.num_repeats + _WARM_UPS):
            before = len(self._ops)
            for width in grid.widths:
                self._verify(width)
            self._draft.draft(grid.num_steps + 1)
            self._draft.submit(0)
            self._take(is_beside=False)
            for count in grid.branch_counts:
                self._draft.branch((count,), grid.num_steps)
                self._take(is_beside=False)
                self._target.submit(self._pending(4), last=self._tokens[context], num_cached=context)
                self._draft.branch((count,), grid.num_steps)
                self._note_verdict(4, is_beside=True)
                self._take(is_beside=True)
            if index < _WARM_UPS:
                del self._ops[before:]
        return self._ops

    def _pending(self, width: int) -> list[int]:
        return self._tokens[self._context + 1 : self._context + width]

    def _verify(self, width: int) -> None:
        self._target.submit(self._pending(width), last=self._tokens[self._context], num_cached=self._context)
        self._note_verdict(width, is_beside=False)

    def _note_verdict(self, width: int, *, is_beside: bool) -> None:
        verdict = self._target.wait_verdict()
        shape = OpShape(Actor.TARGET, OpKind.VERIFY, width, 1, self._context)
        self._ops.append(
            op_of(self._request_id, 0, self._target_device, shape, verdict.start_s, verdict.end_s, is_beside=is_beside)
        )

    def _take(self, *, is_beside: bool) -> None:
        self._ops += [
            op_of(self._request_id, 0, self._draft_device, shape, start_s, end_s, is_beside=is_beside)
            for shape, start_s, end_s, _ in self._draft.take_forwards()
        ]


def _record_of(
    request_id: int, prompt_id: str, policy: str, context: int, span: tuple[float, float], is_clean: bool
) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        prompt_id=prompt_id,
        policy=policy,
        repeat=0,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        noise_key=0,
        arrival_s=span[0],
        first_token_s=span[0],
        finish_s=span[1],
        num_prompt_tokens=context + 1,
        num_output_tokens=0,
        max_new_tokens=0,
        finish_reason=FinishReason.UNFINISHED.value,
        tokens_sha256="sweep",
        is_clean=is_clean,
    )

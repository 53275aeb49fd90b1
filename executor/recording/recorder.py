"""Record a run: decode a schedule with real models, and write down everything that happened."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from executor.hrad.predictor import check_classes, predicted_window
from executor.loop import Decoded
from executor.models.loading import fingerprint
from executor.models.names import check_drafter, resolve_model
from executor.pair import Session, check_serial
from executor.recording.contention import ContentionMeter
from executor.recording.schedule import Blocks, check_prompts, in_blocks, make_requests, settled
from executor.recording.settings import RecordSettings, config_of
from executor.recording.synthetic import SyntheticAcceptance
from executor.request import Request
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from traces.folder.run import Run, read_run
from traces.folder.tables import table_of
from traces.folder.writer import RunWriter, check_new_folder
from traces.metrics.machine_speed import machine_speed_of
from traces.metrics.speeds import measured_speeds, mismatched_prompts, speeds_summary
from traces.progress import Report, silent
from traces.schema import Op, RequestRecord, Round, RoundTimes, Rule

NOISE_RULE = "shared Gumbel noise, Philox4x32-10 keyed by (seed, noise_key, position)"
PRIVATE_RULES = {
    Rule.RATIO: "ratio rule, numbers of its own for draft, test and residual (Philox4x32-10)",
    Rule.POINT_MASS: "point mass: the draft's most probable token, kept with the target's chance of it (Philox4x32-10)",
}
SYNTHETIC = "synthetic"  # in place of a hash of tokens that mean nothing
MIN_LAP_S = 0.4
Tables: TypeAlias = tuple[pd.DataFrame, pd.DataFrame]  # requests, rounds
IsEnough: TypeAlias = Callable[[int, Callable[[], Tables]], bool]  # (blocks done, what was recorded)
_Key: TypeAlias = tuple[str, float, str, int]  # prompt, temperature, policy, repeat
MAX_TRIES = 3


def record_run(
    settings: RecordSettings,
    output_dir: str | Path,
    *,
    session: Session | None = None,
    resumes: bool = False,
    progress: Report = silent,
) -> Run:
    """Decode every prompt under every policy of `settings`; returns the finished run folder.

    A given session is used and left open. resumes: go on where a run of the same settings in this folder was cut short, if
    there is one. progress: counts decoded requests. Raises ValueError, before any model is loaded,
    for a folder that holds something, policies that this pair cannot run, an acceptance that is none, and prompts that cannot
    be read, encoded or held.
    """
    window = session.class_window if session is not None else predicted_window(settings.pair.hrad)
    policies = [parse_policy(label) for label in settings.decoding.policies]
    for policy in policies:
        check_classes(policy, window)
        check_drafter(policy, settings.pair.draft)
        check_serial(policy, settings.pair.rule)
    resumes = resumes and (Path(output_dir) / "meta.json").is_file()
    if not resumes:
        check_new_folder(Path(output_dir))
    if settings.decoding.acceptance:
        SyntheticAcceptance(settings.decoding.acceptance)
    if session is None:
        settings = check_prompts(settings)
    with nullcontext(session) if session is not None else Session(settings.pair) as session:
        settings = settled(settings, session.tokenizer)
        requests = make_requests(settings, session)
        names = list(dict.fromkeys(request.prompt_id for request in requests))
        timed = {name for index, name in enumerate(names) if settings.prompts.is_timed(index)}
        blocks = in_blocks(
            requests,
            lambda request: policies if request.prompt_id in timed else policies[:1],
            repeats=settings.repeats,
            seed=settings.decoding.seed,
        )
        return record(blocks, settings, output_dir, session=session, resumes=resumes, progress=progress)


def record(
    blocks: Blocks,
    settings: RecordSettings,
    output_dir: str | Path,
    *,
    session: Session,
    resumes: bool = False,
    progress: Report = silent,
    is_enough: IsEnough | None = None,
) -> Run:
    """Decode blocks in their order; returns the finished run folder.

    settings: those that the blocks were made from; they are written down, and say what else is recorded and whether
    acceptance is synthetic, by which every record is then marked. resumes: what the folder holds already is not decoded again,
    but where its alignment was lost. progress: counts decoded requests. is_enough: asked after
    each block whether the rest may be left out.
    """
    label = settings.decoding.acceptance
    synthetic = SyntheticAcceptance(label) if label else None
    rule = f"synthetic acceptance: {label}" if label else PRIVATE_RULES.get(settings.pair.rule, NOISE_RULE)
    meta: dict[str, Any] = {"kind": "executed", "noise_rule": rule}
    if session.class_window:
        meta["class_window"] = session.class_window
    with RunWriter(output_dir, config=config_of(settings), meta=meta, resumes=resumes) as writer:
        _warm_up(session, blocks, synthetic)
        recorder = _Recorder(settings, session, writer, synthetic)
        if resumes:
            recorder.take_up(read_run(output_dir))
        done, total = 0, sum(map(len, blocks))
        for index, block in enumerate(blocks, 1):
            for request, policy, repeat in block:
                recorder.decode(request, policy, repeat)
                done += 1
                progress(done, total)
            if is_enough is not None and is_enough(index, recorder.tables):
                break
        recorder.finish()
    return read_run(output_dir)


def _warm_up(session: Session, blocks: Blocks, synthetic: SyntheticAcceptance | None) -> None:
    """Each policy once on the first request, untimed: allocators, caches and clocks settle."""
    request = blocks[0][0].request
    for policy in dict.fromkeys(decoding.policy for block in blocks for decoding in block):
        session.run(request, policy, outcomes=synthetic.outcomes(request, policy) if synthetic else None)


class _Recorder:
    """Turns decoded requests into records of one run folder."""

    def __init__(
        self, settings: RecordSettings, session: Session, writer: RunWriter, synthetic: SyntheticAcceptance | None
    ) -> None:
        self._settings, self._session, self._writer = settings, session, writer
        self._synthetic = synthetic
        # Ranks are those of shared noise: of tokens that another rule drew there are none, and each policy has its own.
        self._is_shared = settings.pair.rule is Rule.SHARED
        self._start_s = time.perf_counter()
        self._num_requests = self._num_near_ties = 0
        self._predict_s = self._predicted_verify_s = 0.0
        self._aligned: set[tuple[str, float]] = set()
        self._meter = ContentionMeter([session.target.pid])
        self._waiting: list[RequestRecord] = []
        self._requests: list[RequestRecord] = []
        self._rounds: list[tuple[Round, RoundTimes]] = []
        self._lap_start_s = self._start_s
        self._other_share: list[float] = []
        self._done: dict[_Key, int] = {}
        self._before: Tables | None = None

    def take_up(self, run: Run) -> None:
        """Go on after what a run that was cut short holds: its requests are done, and time goes on where it ended."""
        requests = run.requests
        self._before = requests, run.rounds[run.rounds.request_id.isin(requests.request_id)]
        keys = requests[["prompt_id", "temperature", "policy", "repeat"]].itertuples(index=False, name=None)
        self._done = dict(zip(keys, requests.request_id.tolist(), strict=True))
        self._aligned = {(trace.prompt_id, trace.temperature) for trace in run.traces()}
        self._num_requests = 1 + max(
            (int(table.request_id.max()) for table in (run.ops, requests) if len(table)), default=-1
        )
        self._start_s -= max(
            (float(table.max()) for table in (run.ops.end_s, requests.finish_s) if len(table)), default=0.0
        )

    def decode(self, request: Request, policy: Policy, repeat: int) -> None:
        """Run one request and record it, unless that was done before."""
        known = self._done.get((request.prompt_id, request.sampling.temperature, label_of(policy), repeat))
        if known is not None:
            if self._has_to_align(request):  # it was lost: the same tokens once more
                self._align(self._run(request, policy, known), known)
            return
        request_id = self._num_requests
        self._num_requests += 1
        for _ in range(MAX_TRIES):
            num_captures = self._session.num_captures
            decoded = self._run(request, policy, request_id)
            if self._session.num_captures == num_captures:
                break  # otherwise steps were captured on the way: the same run again, which is then a measurement
        if policy.needs.classes:
            self._predict_s += decoded.predict_s
            self._predicted_verify_s += sum(times.verify_s for _, times in decoded.rounds)
        start = self._start_s
        self._writer.ops([_shifted(op, start) for op in decoded.ops])
        rounds = [
            (round_, times._replace(start_s=times.start_s - start, end_s=times.end_s - start))
            for round_, times in decoded.rounds
        ]
        self._writer.rounds(rounds)
        self._rounds += rounds
        finished = _record_of(decoded, request_id, label_of(policy), repeat, start)
        self._waiting.append(finished if self._synthetic is None else finished._replace(tokens_sha256=SYNTHETIC))
        if time.perf_counter() - self._lap_start_s >= MIN_LAP_S:
            self._close_lap()
        if self._has_to_align(request):
            self._align(decoded, request_id)

    def _run(self, request: Request, policy: Policy, request_id: int) -> Decoded:
        outcomes = self._synthetic.outcomes(request, policy) if self._synthetic is not None else None
        return self._session.run(request, policy, request_id=request_id, outcomes=outcomes)

    def _has_to_align(self, request: Request) -> bool:
        """Whether alignment is recorded, and is not yet of this prompt and temperature."""
        key = (request.prompt_id, request.sampling.temperature)
        return self._settings.aligns and self._is_shared and key not in self._aligned

    def _align(self, decoded: Decoded, request_id: int) -> None:
        """Record what outcomes depend on, once for a prompt and temperature."""
        request = decoded.request
        self._aligned.add((request.prompt_id, request.sampling.temperature))
        self._close_lap()
        if self._synthetic is not None:
            self._writer.trace(self._synthetic.trace_of(request, request_id))
            return
        annotation = self._session.annotate(decoded, request_id=request_id, tail_depth=self._settings.tail_depth)
        self._num_near_ties += annotation.num_near_ties
        self._writer.trace(annotation.trace, annotation.columns)
        self._meter.lap()  # annotation is nobody's contention
        self._lap_start_s = time.perf_counter()

    def _close_lap(self) -> None:
        """Mark the requests since the last lap by the load that others made meanwhile."""
        contention = self._meter.lap()
        self._lap_start_s = time.perf_counter()
        if not self._waiting:
            return
        self._other_share.append(contention.other_share)
        # The system counts in hundredths of a second, so a short lap cannot prove a load of others.
        is_clean = contention.is_clean or contention.other_share * contention.span_s <= 0.03
        for waiting in self._waiting:
            marked = waiting._replace(is_clean=is_clean)
            self._writer.request(marked)
            self._requests.append(marked)
        self._waiting.clear()
        self._writer.flush()

    def tables(self) -> Tables:
        """Requests and rounds up to now."""
        self._close_lap()
        rounds = [(*round_, *times) for round_, times in self._rounds]
        requests, rounds_ = table_of("requests", self._requests).to_pandas(), table_of("rounds", rounds).to_pandas()
        if self._before is None:
            return requests, rounds_
        return pd.concat([self._before[0], requests]), pd.concat([self._before[1], rounds_])

    def finish(self) -> None:
        """Summarise and close the run."""
        session, pair = self._session, self._settings.pair
        requests, rounds = self.tables()
        machine = machine_speed_of(requests, rounds)
        mismatched = mismatched_prompts(requests)
        self._writer.finish(
            {
                "measured": speeds_summary(measured_speeds(requests, rounds)),
                "adjusted": speeds_summary(measured_speeds(requests, machine.adjusted(rounds))),
                "drift_range": machine.range,
                "tokens_identical": not mismatched if self._is_shared and self._synthetic is None else None,
                "mismatched_prompts": mismatched,
                "num_near_ties": self._num_near_ties,
                "contention": self.contention(),
                "hrad": self._prediction_cost(),
            },
            meta={
                "target_fingerprint": fingerprint(resolve_model(pair.target, "target")),
                "draft_fingerprint": fingerprint(resolve_model(pair.draft, "draft")),
                "devices": list(session.devices),
                "weight_layouts": session.layouts,
                "cores": session.cores,
                "torch_threads": torch.get_num_threads(),
                "contention": self.contention(),
            },
        )

    def _prediction_cost(self) -> dict[str, float]:
        """Seconds of H-RAD's predictions in this run, and their share of the verifications that include them."""
        if not self._predicted_verify_s:
            return {}
        return {"predict_s": self._predict_s, "share_of_verify": self._predict_s / self._predicted_verify_s}

    def contention(self) -> dict[str, float]:
        """Cores kept busy by others, over the laps of the run."""
        shares = np.asarray(self._other_share or [0.0])
        return {"mean_other_share": float(shares.mean()), "worst_other_share": float(shares.max())}


def _shifted(op: Op, start_s: float) -> Op:
    return op._replace(start_s=op.start_s - start_s, end_s=op.end_s - start_s)


def _record_of(decoded: Decoded, request_id: int, policy: str, repeat: int, start_s: float) -> RequestRecord:
    request = decoded.request
    return RequestRecord(
        request_id=request_id,
        prompt_id=request.prompt_id,
        policy=policy,
        repeat=repeat,
        temperature=request.sampling.temperature,
        top_k=request.sampling.top_k,
        top_p=request.sampling.top_p,
        seed=request.seed,
        noise_key=request.noise_key,
        arrival_s=decoded.start_s - start_s,
        first_token_s=decoded.first_token_s - start_s,
        finish_s=decoded.end_s - start_s,
        num_prompt_tokens=len(request.tokens),
        num_output_tokens=len(decoded.tokens),
        max_new_tokens=request.max_new_tokens,
        finish_reason=decoded.finish_reason.value,
        tokens_sha256=hash_tokens(decoded.tokens),
        is_clean=True,
    )


def hash_tokens(tokens: list[int]) -> str:
    """Fingerprint of a token sequence: equal means token for token equal."""
    return hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()[:16]

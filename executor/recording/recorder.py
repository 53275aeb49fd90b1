"""Record a run: decode prompts under policies with real models, and write down everything that happened."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from executor.hrad.predictor import check_classes
from executor.loop import Decoded, Outcomes
from executor.models.loading import fingerprint
from executor.pair import Session
from executor.recording.contention import ContentionMeter
from executor.recording.prompts import encode_prompt, load_prompts
from executor.remote.transport import parse_transport
from executor.request import Request, check_stops
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.serial.prompt_lookup import check_drafter
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.metrics.speeds import measured_speeds, mismatched_prompts, speeds_summary
from traces.progress import Report, silent
from traces.schema import Op, RequestRecord, RequestTrace, RoundTimes, Sampling

EMBEDDED = Path(__file__).parents[1] / "embedded_pair" / "weights"
NOISE_RULE = "shared Gumbel noise, Philox4x32-10 keyed by (seed, noise_key, position)"
SYNTHETIC = "synthetic"  # in place of a hash of tokens that mean nothing
MIN_LAP_S = 0.4
MOST_TRIES = 3


class Synthetic(Protocol):
    """Decides outcomes in the models' place: `executor.recording.synthetic.SyntheticAcceptance`."""

    label: str

    def trace_of(self, request: Request, request_id: int = 0) -> RequestTrace:
        """Everything that the outcomes of a request depend on."""
        ...

    def outcomes(self, request: Request, policy: Policy) -> Outcomes:
        """What decides while this policy runs."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What to record. target, draft: folders or ids; "embedded" and "embedded_small" name the shipped pair's models,
    "prompt_lookup" a draft without weights (`executor.models.engines.prompt_lookup`).

    prompts: see `executor.recording.prompts.load_prompts`. policies: labels of `sim.decoding.policies.catalog`.
    target_device: "" is the draft's device. transport: see `executor.pair.Session`.
    hrad: folder of an H-RAD predictor; "embedded" names the shipped one, "" runs none.
    verify_width: rows of every verification of the resident engine; 0 chooses by the tokens at hand.
    draft_sms: multiprocessors that the draft is confined to where both models share a GPU; 0 is all.
    acceptance: label of a synthetic acceptance (`executor.recording.synthetic`), which `record` is given; "" is real.
    repeats: times that every (prompt, temperature, policy) is decoded. aligns: whether alignment and tails are recorded.
    """

    target: str = "embedded"
    draft: str = "embedded"
    policies: tuple[str, ...] = ("autoregressive", "probe")
    temperatures: tuple[float, ...] = (0.0, 1.0)
    top_k: int = 0
    top_p: float = 1.0
    prompts: str = "held_out"
    num_prompts: int = 16
    skip_prompts: int = 0
    max_new_tokens: int = 96
    repeats: int = 1
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    tail_depth: int = 16
    aligns: bool = True
    engine: str = "static"
    device: str = "cpu"
    target_device: str = ""
    transport: str = "mailbox"
    dtype: str = "float32"
    capacity: int = 1024
    is_pinned: bool = True
    timeout_s: float = 60.0
    hrad: str = ""
    verify_width: int = 0
    draft_sms: int = 0
    acceptance: str = ""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies is empty; name at least one, such as autoregressive.")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, but got {self.repeats}.")
        check_stops(self.stop_strings)
        parse_transport(self.transport)
        for label in self.policies:
            parse_policy(label)
        for temperature in self.temperatures:
            Sampling(temperature, self.top_k, self.top_p)


def resolve_model(name: str, role: str) -> str:
    """The folder or id behind a model name; role is "target" or "draft"."""
    folders = {"embedded": role, "embedded_small": "draft_small" if role == "draft" else "target"}
    return str(EMBEDDED / folders[name]) if name in folders else name


def resolve_predictor(name: str) -> str | None:
    """The folder behind a predictor's name, None for no predictor."""
    return str(EMBEDDED / "hrad") if name == "embedded" else name or None


def open_session(settings: RecordSettings) -> Session:
    """The pair of these settings, loaded."""
    return Session(
        resolve_model(settings.target, "target"),
        resolve_model(settings.draft, "draft"),
        engine=settings.engine,
        device=settings.device,
        target_device=settings.target_device or None,
        transport=settings.transport,
        dtype=settings.dtype,
        capacity=settings.capacity,
        is_pinned=settings.is_pinned,
        timeout_s=settings.timeout_s,
        hrad=resolve_predictor(settings.hrad),
        verify_width=settings.verify_width,
        draft_sms=settings.draft_sms,
    )


def make_requests(settings: RecordSettings, session: Session) -> list[Request]:
    """One request a prompt and temperature. The noise key follows the prompt's name, so runs can be compared."""
    room = settings.capacity - settings.max_new_tokens
    requests = []
    for prompt in load_prompts(settings.prompts, settings.num_prompts, skip=settings.skip_prompts):
        tokens = encode_prompt(session.tokenizer, prompt)
        if len(tokens) > room:
            raise ValueError(
                f"prompt {prompt.prompt_id} has {len(tokens)} tokens; with max_new_tokens {settings.max_new_tokens} a "
                f"capacity of {settings.capacity} holds {room}. Raise --capacity or shorten the prompt."
            )
        for temperature in settings.temperatures:
            requests.append(
                Request(
                    prompt_id=prompt.prompt_id,
                    tokens=tokens,
                    max_new_tokens=settings.max_new_tokens,
                    sampling=Sampling(temperature, settings.top_k, settings.top_p),
                    seed=settings.seed,
                    noise_key=zlib.crc32(prompt.prompt_id.encode()),
                    stop_strings=settings.stop_strings,
                    ignore_eos=settings.ignore_eos,
                )
            )
    return requests


def record(
    settings: RecordSettings,
    output_dir: str | Path,
    *,
    session: Session | None = None,
    progress: Report = silent,
    conclude: Callable[[Run], dict[str, object]] = lambda run: {},
    wants: Callable[[str, Request], bool] = lambda policy, request: True,
    arrange: Callable[[list[Request]], list[Request]] = lambda requests: requests,
    synthetic: Synthetic | None = None,
) -> Run:
    """Decode and record; returns the finished run folder. A given session is used and left open.

    progress(done, total) counts decoded requests. conclude(run) may add to summary.json before the run is closed.
    synthetic: decides outcomes in the models' place; every record is marked by its label.
    wants(policy label, request) may leave combinations out; arrange(requests) may reorder them. Policies take turns on
    each prompt, in an order that rotates, so that a drift of the machine meets all of them alike.
    """
    if settings.acceptance and synthetic is None:
        raise ValueError(
            f"acceptance {settings.acceptance!r} was asked for, but nothing was given that decides outcomes."
        )
    policies = [parse_policy(label) for label in settings.policies]
    for policy in policies:
        check_classes(policy, session.has_predictor if session is not None else bool(settings.hrad))
        check_drafter(policy, settings.draft)
    rule = f"synthetic acceptance: {synthetic.label}" if synthetic is not None else NOISE_RULE
    writer = RunWriter(output_dir, config=asdict(settings), meta={"kind": "executed", "noise_rule": rule})
    with writer, nullcontext(session) if session is not None else open_session(settings) as session:
        requests = arrange(make_requests(settings, session))
        _warm_up(session, requests[0], policies, synthetic)
        recorder = _Recorder(settings, session, writer, synthetic)
        schedule = [
            (request, policy, repeat)
            for request, policy, repeat in _schedule(requests, policies, settings.repeats)
            if wants(label_of(policy), request)
        ]
        for count, (request, policy, repeat) in enumerate(schedule, 1):
            recorder.decode(request, policy, repeat)
            progress(count, len(schedule))
        recorder.finish(conclude)
    return read_run(output_dir)


def _schedule(requests: list[Request], policies: list[Policy], repeats: int) -> Iterator[tuple[Request, Policy, int]]:
    for repeat in range(repeats):
        for index, request in enumerate(requests):
            shift = (index + repeat) % len(policies)
            for policy in policies[shift:] + policies[:shift]:
                yield request, policy, repeat


def _warm_up(session: Session, request: Request, policies: list[Policy], synthetic: Synthetic | None) -> None:
    """Each policy once, untimed: allocators, caches and clocks settle."""
    for policy in policies:
        session.run(request, policy, outcomes=synthetic.outcomes(request, policy) if synthetic else None)


class _Recorder:
    """Turns decoded requests into records of one run folder."""

    def __init__(
        self, settings: RecordSettings, session: Session, writer: RunWriter, synthetic: Synthetic | None
    ) -> None:
        self._settings, self._session, self._writer = settings, session, writer
        self._synthetic = synthetic
        self._start_s = time.perf_counter()
        self._num_requests = self._num_near_ties = 0
        self._predict_s = self._predicted_verify_s = 0.0
        self._aligned: set[tuple[str, float]] = set()
        self._meter = ContentionMeter([session.target.pid])
        self._waiting: list[RequestRecord] = []
        self._lap_start_s = self._start_s
        self._other_share: list[float] = []

    def decode(self, request: Request, policy: Policy, repeat: int) -> None:
        """Run one request and record it."""
        request_id = self._num_requests
        self._num_requests += 1
        synthetic = self._synthetic
        for _ in range(MOST_TRIES):
            num_captures = self._session.num_captures
            outcomes = synthetic.outcomes(request, policy) if synthetic is not None else None
            done = self._session.run(request, policy, request_id=request_id, outcomes=outcomes)
            if self._session.num_captures == num_captures:
                break  # otherwise steps were captured on the way: the same run again, which is then a measurement
        if policy.needs.classes:
            self._predict_s += done.predict_s
            self._predicted_verify_s += sum(times.verify_s for _, times in done.rounds)
        start = self._start_s
        self._writer.ops([_shifted(op, start) for op in done.ops])
        self._writer.rounds(
            [(turn, RoundTimes(t.start_s - start, t.end_s - start, t.draft_s, t.verify_s)) for turn, t in done.rounds]
        )
        finished = _record_of(done, request_id, label_of(policy), repeat, start)
        self._waiting.append(finished if synthetic is None else finished._replace(tokens_sha256=SYNTHETIC))
        if time.perf_counter() - self._lap_start_s >= MIN_LAP_S:
            self._close_lap()
        key = (request.prompt_id, request.sampling.temperature)
        if self._settings.aligns and key not in self._aligned:
            self._aligned.add(key)
            self._close_lap()
            if synthetic is not None:
                self._writer.trace(synthetic.trace_of(request, request_id))
                return
            found = self._session.annotate(done, request_id=request_id, tail_depth=self._settings.tail_depth)
            self._num_near_ties += found.num_near_ties
            self._writer.trace(found.trace, found.columns)
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
            self._writer.request(waiting._replace(is_clean=is_clean))
        self._waiting.clear()
        self._writer.flush()

    def finish(self, conclude: Callable[[Run], dict[str, object]]) -> None:
        """Summarise and close the run."""
        self._close_lap()
        self._writer.flush()
        run = read_run(self._writer.folder)
        run.summary["contention"] = self.contention()
        speeds = measured_speeds(run.requests, run.rounds)
        mismatched = mismatched_prompts(run.requests)
        settings, session = self._settings, self._session
        self._writer.finish(
            {
                "measured": speeds_summary(speeds),
                "tokens_identical": not mismatched if self._synthetic is None else None,
                "mismatched_prompts": mismatched,
                "num_near_ties": self._num_near_ties,
                "contention": self.contention(),
                "hrad": self._prediction_cost(),
                **conclude(run),
            },
            meta={
                "target_fingerprint": fingerprint(resolve_model(settings.target, "target")),
                "draft_fingerprint": fingerprint(resolve_model(settings.draft, "draft")),
                "devices": list(session.devices),
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


def _record_of(done: Decoded, request_id: int, policy: str, repeat: int, start_s: float) -> RequestRecord:
    request = done.request
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
        arrival_s=done.start_s - start_s,
        first_token_s=done.first_token_s - start_s,
        finish_s=done.end_s - start_s,
        num_prompt_tokens=len(request.tokens),
        num_output_tokens=len(done.tokens),
        max_new_tokens=request.max_new_tokens,
        finish_reason=done.finish_reason.value,
        tokens_sha256=hash_tokens(done.tokens),
        is_clean=True,
    )


def hash_tokens(tokens: list[int]) -> str:
    """Fingerprint of a token sequence: equal means token for token equal."""
    return hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()[:16]

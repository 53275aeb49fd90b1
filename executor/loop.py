"""The step loop with real models: drives the step machine, answers its commands, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from executor.noise import NoiseTable
from executor.request import EndFinder, Request
from executor.roles.draft import Draft, Forward
from executor.roles.target import Prefill, Target, TargetVerdict
from sim.decoding.machine import (
    Branch,
    ClassProbs,
    Close,
    Command,
    DraftTokens,
    Keep,
    Look,
    Reply,
    Settle,
    Settled,
    Submit,
    decode,
)
from sim.decoding.policies.base import Policy
from traces.schema import FinishReason, Op, Round, RoundTimes


class Outcomes(Protocol):
    """Decides what comes of each command in the models' place: synthetic acceptance (a `TraceWorld`, say)."""

    @property
    def first_classes(self) -> ClassProbs | None:
        """H-RAD's prediction after the prefill."""
        ...

    def answer(self, command: Command) -> Reply:
        """What came of a command."""
        ...


@dataclass
class Decoded:
    """One request as it ran. Times are seconds of time.perf_counter; `tokens` are the generated ones.

    predict_s: seconds of H-RAD's predictions, which the verifications' times include.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.UNFINISHED
    rounds: list[tuple[Round, RoundTimes]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    start_s: float = 0.0
    prefilled_s: float = 0.0
    first_token_s: float = 0.0
    end_s: float = 0.0
    predict_s: float = 0.0

    @property
    def decode_s(self) -> float:
        """Seconds from the end of the prefill to the last token."""
        return self.end_s - self.prefilled_s


def run_request(
    request: Request,
    policy: Policy,
    *,
    request_id: int,
    draft: Draft,
    target: Target,
    noise: NoiseTable | None,
    eos_ids: frozenset[int],
    decode_text: Callable[[list[int]], str],
    decode_whole: Callable[[list[int]], str] | None = None,
    devices: tuple[str, str] = ("cpu", "cpu"),
    is_recording: bool = True,
    outcomes: Outcomes | None = None,
) -> Decoded:
    """Decode one prompt under a policy. The tokens are those of plain autoregressive decoding, whatever the policy.

    outcomes: decides every outcome and signal instead of the models, whose weights then matter for time alone; the
    tokens are the draft's own and mean nothing.
    devices: names of the draft's and the target's device, for the op table. is_recording: whether rounds and operations
    are written down (switched off to measure what that costs).
    """
    done = Decoded(request, start_s=time.perf_counter())
    ends = EndFinder(request, eos_ids, decode_text, decode_whole)
    num_prompt = len(request.tokens)
    needs = policy.needs

    target.begin(request, predicts=needs.classes)
    draft.begin(request, needs, noise)
    if needs.drafts:
        draft.prefill()
    prefill = target.wait_prefill()
    recorder = _Recorder(done, draft, request_id, devices) if is_recording else _NoRecorder(draft)
    recorder.add_prefill(prefill)
    done.prefilled_s = round_start = time.perf_counter()

    classes = prefill.class_probs if outcomes is None else outcomes.first_classes
    machine = decode(policy, request_id=request_id, max_new_tokens=request.max_new_tokens, class_probs=classes)
    reply: Reply = None
    while True:
        try:
            command = machine.send(reply)
        except StopIteration:
            break
        reply = None
        if isinstance(command, DraftTokens):
            reply = draft.draft(command.num_tokens)
        elif isinstance(command, Submit):
            draft.submit(command.num_pending)
            context = num_prompt - 1 + len(done.tokens)
            newest = done.tokens[-1] if done.tokens else request.tokens[-1]
            target.submit(draft.pending, last=newest, num_cached=context)
        elif isinstance(command, Look):
            reply = draft.look()
        elif isinstance(command, Branch):
            draft.branch(command.fanout, command.num_steps)
        elif isinstance(command, Settle):
            verdict = target.wait_verdict()
            done.predict_s += verdict.predict_s
            if outcomes is None:
                reply = _settle(done, draft, verdict, ends)
            else:
                reply = _settle_as_told(done, draft, outcomes.answer(command))
        elif isinstance(command, Keep):
            draft.keep(command.num_kept)
        elif isinstance(command, Close):
            now, turn = time.perf_counter(), command.round
            if turn.round == 0:
                done.first_token_s = now
            recorder.add_round(turn, round_start, now, verdict, context)
            round_start = now
        if outcomes is not None and not isinstance(command, Settle):
            told = outcomes.answer(command)
            reply = reply if told is None else told
    done.end_s = round_start
    return done


def _settle(done: Decoded, draft: Draft, verdict: TargetVerdict, ends: EndFinder) -> Settled:
    """Commit a verdict, cut at the request's end."""
    emitted = [*draft.pending[: verdict.num_accepted], verdict.next_token]
    num_emitted, reason = ends.find(len(done.tokens), emitted)
    num_accepted = min(verdict.num_accepted, num_emitted)
    done.tokens += emitted[:num_emitted]
    if reason is not None:
        done.finish_reason = reason
    if num_emitted == num_accepted:  # the request ended within the accepted tokens
        return Settled(num_accepted, num_emitted, True, -1, False, (), None)
    rank, is_hit, ahead = draft.settle(num_accepted, verdict.next_token)
    if reason is not None:
        is_hit, ahead = False, ()
    return Settled(num_accepted, num_emitted, reason is not None, rank, is_hit, ahead, verdict.class_probs)


def _settle_as_told(done: Decoded, draft: Draft, told: Reply) -> Settled:
    """Commit the outcome that was decided for us: the draft's own tokens stand for the ones of that rank."""
    assert isinstance(told, Settled)
    num = told.num_accepted
    done.tokens += draft.pending[:num]
    if told.is_finished:
        done.finish_reason = FinishReason.MAX_TOKENS
    if told.num_emitted > num:
        best = draft.alternatives(num)
        rank = told.next_rank
        strange = next(token for token in range(len(best) + 1) if token not in best)
        done.tokens.append(best[rank] if 0 <= rank < len(best) else strange)
        _, is_hit, _ = draft.settle(num, done.tokens[-1])
        assert is_hit == told.is_hit or told.is_finished, "a told outcome must be one that the draft hedged, or not"
    return told


class _Recorder:
    """Writes down the operations and rounds of one request."""

    def __init__(self, done: Decoded, draft: Draft, request_id: int, devices: tuple[str, str]) -> None:
        self._ops, self._rounds, self._draft = done.ops, done.rounds, draft
        self._request_id = request_id
        self._draft_device, self._target_device = devices

    def add_prefill(self, prefill: Prefill) -> None:
        """Both models' prefill, before round 0."""
        device = self._target_device
        start_s, end_s = prefill.start_s, prefill.end_s
        self._ops.append(
            Op(self._request_id, -1, "target", device, "prefill", start_s, end_s, prefill.num_cached, 1, 1, 0)
        )
        self._add_forwards(-1, self._draft.take_forwards())

    def add_round(self, turn: Round, start_s: float, end_s: float, verdict: TargetVerdict, context: int) -> None:
        """A round that ended now, with its operations."""
        request_id, index = self._request_id, turn.round
        verify_s = verdict.end_s - verdict.start_s
        forwards = self._draft.take_forwards()
        spent = [(forward.kind, forward.end_s + forward.read_s - forward.start_s) for forward in forwards]
        serial_s = sum(seconds for kind, seconds in spent if kind == "draft")
        draft_s = sum(seconds for _, seconds in spent)
        # What the critical path does not explain is the host's: decisions, hand-over, bookkeeping.
        host_s = max(0.0, end_s - start_s - serial_s - max(verify_s, draft_s - serial_s))
        tokens, branches = turn.num_pending, turn.num_branches
        device, started, ended = self._target_device, verdict.start_s, verdict.end_s - verdict.predict_s
        kind = "verify_beside" if any(name != "draft" for name, _ in spent) else "verify"
        self._ops += [
            Op(request_id, index, "target", device, kind, started, ended, tokens + 1, 1, 1, context),
            Op(request_id, index, "host", "host", "host", end_s - host_s, end_s, tokens, 1, branches, context),
        ]
        if verdict.predict_s:
            self._ops.append(Op(request_id, index, "target", device, "predict", ended, verdict.end_s, 1, 1, 1, context))
        self._add_forwards(index, forwards)
        self._rounds.append((turn, RoundTimes(start_s, end_s, draft_s, verify_s)))

    def _add_forwards(self, index: int, forwards: list[Forward]) -> None:
        device = self._draft_device
        for kind, start_s, end_s, tokens, branches, context, read_s in forwards:
            self._ops.append(
                Op(self._request_id, index, "draft", device, kind, start_s, end_s, tokens, 1, branches, context)
            )
            if read_s:
                kind, start_s, end_s = "read" if kind == "draft" else "read_ahead", end_s, end_s + read_s
                self._ops.append(
                    Op(self._request_id, index, "draft", device, kind, start_s, end_s, 1, 1, branches, context)
                )


class _NoRecorder:
    """Writes nothing down: the other side of the recorder's cost."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add_prefill(self, prefill: Prefill) -> None:
        """Forget it."""
        self._draft.take_forwards()

    def add_round(self, turn: Round, start_s: float, end_s: float, verdict: TargetVerdict, context: int) -> None:
        """Forget it."""
        self._draft.take_forwards()

"""The step loop with real models: drives `sim.machine.decode`, answers its commands, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from executor.draft_side import DraftSide, Forward
from executor.noise import NoiseTable
from executor.requests import EndFinder, Request
from executor.target_client import TargetClient, TargetVerdict
from sim.machine import Branch, Close, DraftTokens, Keep, Look, Reply, Settle, Settled, Submit, decode
from sim.policies.base import Policy
from traces.schema import FinishReason, Op, Round, RoundTimes


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
    draft: DraftSide,
    target: TargetClient,
    noise: NoiseTable | None,
    eos_ids: frozenset[int],
    decode_text: Callable[[list[int]], str],
    devices: tuple[str, str] = ("cpu", "cpu"),
) -> Decoded:
    """Decode one prompt under a policy. The tokens are those of plain autoregressive decoding, whatever the policy.

    devices: names of the draft's and the target's device, for the op table.
    """
    done = Decoded(request, start_s=time.perf_counter())
    ends = EndFinder(request, eos_ids, decode_text)
    num_prompt = len(request.tokens)
    needs = policy.needs

    target.begin(request, predicts=needs.classes)
    draft.begin(request, needs, noise)
    if needs.drafts:
        draft.prefill()
    prefill = target.wait_prefill()
    recorder = _OpRecorder(done, request_id, devices)
    recorder.add("target", "prefill", prefill.start_s, prefill.end_s, prefill.num_cached, 1, 0)
    recorder.add_forwards(draft.forwards)
    draft.forwards.clear()
    done.prefilled_s = round_start = time.perf_counter()

    machine = decode(
        policy, request_id=request_id, max_new_tokens=request.max_new_tokens, class_probs=prefill.class_probs
    )
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
            target.submit(draft.pending)
            submitted_s = time.perf_counter()
        elif isinstance(command, Look):
            reply = draft.look()
        elif isinstance(command, Branch):
            draft.branch(command.fanout, command.num_steps)
        elif isinstance(command, Settle):
            ahead_until_s = time.perf_counter()
            verdict = target.wait_verdict()
            done.predict_s += verdict.predict_s
            reply = _settle(done, draft, verdict, ends)
        elif isinstance(command, Keep):
            draft.keep(command.num_kept)
        elif isinstance(command, Close):
            now, turn = time.perf_counter(), command.round
            if turn.round == 0:
                done.first_token_s = now
            recorder.add("target", "verify", verdict.start_s, verdict.end_s, turn.num_pending + 1, 1, context, turn.round)
            recorder.add_forwards(draft.forwards, turn.round)
            draft_s = sum(forward.end_s - forward.start_s for forward in draft.forwards)
            draft.forwards.clear()
            # What the critical path does not explain is the host's: decisions, hand-over, bookkeeping.
            critical_s = (submitted_s - round_start) + max(verdict.end_s, ahead_until_s) - submitted_s
            host_s = now - round_start - critical_s
            recorder.add("host", "host", now - host_s, now, turn.num_pending, turn.num_branches, context, turn.round)
            done.rounds.append((turn, RoundTimes(round_start, now, draft_s, verdict.end_s - verdict.start_s)))
            round_start = now
    done.end_s = round_start
    return done


def _settle(done: Decoded, draft: DraftSide, verdict: TargetVerdict, ends: EndFinder) -> Settled:
    """Commit a verdict, cut at the request's end."""
    emitted = [*draft.pending[: verdict.num_accepted], verdict.next_token]
    num_emitted, reason = ends.find(done.tokens, emitted)
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


class _OpRecorder:
    """Appends rows to the op table of one request."""

    def __init__(self, done: Decoded, request_id: int, devices: tuple[str, str]) -> None:
        self._ops, self._request_id = done.ops, request_id
        self._devices = {"draft": devices[0], "target": devices[1], "host": "host"}

    def add(
        self, actor: str, kind: str, start_s: float, end_s: float, tokens: int, branches: int, context: int, turn: int = -1
    ) -> None:
        """One operation; `turn` is its round, -1 for the prefill."""
        device = self._devices[actor]
        self._ops.append(
            Op(self._request_id, turn, actor, device, kind, start_s, end_s, tokens, 1, branches, context)
        )

    def add_forwards(self, forwards: list[Forward], turn: int = -1) -> None:
        """The draft's forwards of one round."""
        for kind, start_s, end_s, tokens, branches, context in forwards:
            self.add("draft", kind, start_s, end_s, tokens, branches, context, turn)

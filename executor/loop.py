"""The step loop with real models: drives the step machine, answers its commands, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
)
from sim.decoding.policies.base import Policy
from sim.decoding.world import World, drive
from traces.metrics.round_time import round_seconds
from traces.schema import Actor, FinishReason, Op, OpKind, OpShape, Round, RoundTimes, op_of


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
    outcomes: World | None = None,
) -> Decoded:
    """Decode one prompt under a policy. The tokens are those of plain autoregressive decoding, whatever the policy.

    outcomes: a world that decides every outcome and signal instead of the models (synthetic acceptance), whose weights
    then matter for time alone; the tokens are the draft's own and mean nothing.
    devices: names of the draft's and the target's device, for the op table. is_recording: whether rounds and operations
    are written down (switched off to measure what that costs).
    """
    decoded = Decoded(request, start_s=time.perf_counter())
    ends = EndFinder(request, eos_ids, decode_text, decode_whole)
    needs = policy.needs
    target.begin(request, predicts=needs.classes)
    draft.begin(request, needs, noise)
    if needs.drafts:
        draft.prefill()
    prefill = target.wait_prefill()
    recorder = _Recorder(decoded, draft, request_id, devices) if is_recording else _NoRecorder(draft)
    recorder.add_prefill(prefill)
    decoded.prefilled_s = round_start_s = time.perf_counter()

    models = PairWorld(decoded, draft, target, ends, prefill.class_probs)
    world = models if outcomes is None else SyntheticWorld(models, outcomes)
    steps = drive(
        policy,
        world,
        request_id=request_id,
        max_new_tokens=request.max_new_tokens,
        num_prompt_tokens=len(request.tokens),
    )
    for command in steps:
        if isinstance(command, Close):
            now_s = time.perf_counter()
            if command.round.round == 0:
                decoded.first_token_s = now_s
            recorder.add_round(command.round, round_start_s, now_s, models.verdict)
            round_start_s = now_s
    decoded.end_s = round_start_s
    return decoded


class PairWorld:
    """The world of two real models: commands go to the draft and the target, and what they bring is committed."""

    verdict: TargetVerdict  # of the round under way

    def __init__(
        self, decoded: Decoded, draft: Draft, target: Target, ends: EndFinder, first_classes: ClassProbs | None
    ) -> None:
        self.decoded, self.draft = decoded, draft
        self.first_classes = first_classes
        self._target, self._ends = target, ends

    def answer(self, command: Command) -> Reply:
        """What came of a command; waits for the target where a round settles."""
        draft = self.draft
        if isinstance(command, DraftTokens):
            return draft.draft(command.num_tokens)
        if isinstance(command, Submit):
            self.submit(command)
        elif isinstance(command, Look):
            return draft.look()
        elif isinstance(command, Branch):
            return draft.branch(command.fanout, command.num_steps, command.num_further, self._target.has_verdict)
        elif isinstance(command, Settle):
            return self._settle(self.wait_verdict())
        elif isinstance(command, Keep):
            draft.keep(command.num_kept)
        return None

    def submit(self, command: Submit) -> None:
        """Start the verification of what stays pending."""
        decoded = self.decoded
        self.draft.submit(command.num_pending)
        newest = decoded.tokens[-1] if decoded.tokens else decoded.request.tokens[-1]
        self._target.submit(self.draft.pending, last=newest, num_cached=command.forwards.context_tokens)

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way, once it is there."""
        self.verdict = self._target.wait_verdict()
        self.decoded.predict_s += self.verdict.predict_s
        return self.verdict

    def _settle(self, verdict: TargetVerdict) -> Settled:
        """Commit a verdict, cut at the request's end."""
        decoded, draft = self.decoded, self.draft
        emitted = [*draft.pending[: verdict.num_accepted], verdict.next_token]
        num_emitted, reason = self._ends.find(len(decoded.tokens), emitted)
        num_accepted = min(verdict.num_accepted, num_emitted)
        decoded.tokens += emitted[:num_emitted]
        if reason is not None:
            decoded.finish_reason = reason
        if num_emitted == num_accepted:  # the request ended within the accepted tokens
            return Settled(num_accepted, num_emitted, True, -1, False, (), None)
        rank, is_hit, ahead = draft.settle(num_accepted, verdict.next_token)
        if reason is not None:
            is_hit, ahead = False, ()
        return Settled(num_accepted, num_emitted, reason is not None, rank, is_hit, ahead, verdict.class_probs)


class SyntheticWorld:
    """Another world decides what comes of each command, and real models take the time that it takes."""

    def __init__(self, models: PairWorld, outcomes: World) -> None:
        self._models, self._outcomes = models, outcomes

    @property
    def first_classes(self) -> ClassProbs | None:
        """The other world's."""
        return self._outcomes.first_classes

    def answer(self, command: Command) -> Reply:
        """The other world's answer, once the models have done what the command says."""
        if not isinstance(command, Settle):
            done = self._models.answer(command)
            if isinstance(command, Branch):
                assert isinstance(done, int), "a branch is answered by the steps that were done"
                self._outcomes.answer(command._replace(num_steps=done, num_further=0))
                return done
            return self._outcomes.answer(command)
        self._models.wait_verdict()
        settled = self._outcomes.answer(command)
        assert isinstance(settled, Settled)
        self._commit(settled)
        return settled

    def _commit(self, settled: Settled) -> None:
        """The draft's own tokens stand for the ones of the decided ranks."""
        decoded, draft = self._models.decoded, self._models.draft
        num = settled.num_accepted
        decoded.tokens += draft.pending[:num]
        if settled.is_finished:
            decoded.finish_reason = FinishReason.MAX_TOKENS
        if settled.num_emitted > num:
            best, rank = draft.alternatives(num), settled.next_rank
            strange = next(token for token in range(len(best) + 1) if token not in best)
            decoded.tokens.append(best[rank] if 0 <= rank < len(best) else strange)
            _, is_hit, _ = draft.settle(num, decoded.tokens[-1])
            assert is_hit == settled.is_hit or settled.is_finished, (
                "a decided outcome is one that the draft hedged, or not"
            )


class _Recorder:
    """Writes down the operations and rounds of one request."""

    def __init__(self, decoded: Decoded, draft: Draft, request_id: int, devices: tuple[str, str]) -> None:
        self._ops, self._rounds, self._draft = decoded.ops, decoded.rounds, draft
        self._num_prompt = len(decoded.request.tokens)
        self._request_id = request_id
        self._draft_device, self._target_device = devices

    def add_prefill(self, prefill: Prefill) -> None:
        """Both models' prefill, before round 0."""
        shape = OpShape(Actor.TARGET, OpKind.PREFILL, prefill.num_cached, 1, 0)
        self._add(-1, self._target_device, shape, prefill.start_s, prefill.end_s)
        self._add_forwards(-1, self._draft.take_forwards())

    def add_round(self, round_: Round, start_s: float, end_s: float, verdict: TargetVerdict) -> None:
        """A round that ended now, with its operations."""
        index, verify_s = round_.round, verdict.end_s - verdict.start_s
        forwards = self._draft.take_forwards()
        spent_s = {False: 0.0, True: 0.0}  # serially, and ahead of the verdict
        for forward in forwards:
            spent_s[_is_ahead(forward)] += forward.end_s + forward.read_s - forward.start_s
        # What the critical path does not explain is the host's: decisions, hand-over, bookkeeping.
        host_s = max(0.0, end_s - start_s - float(round_seconds(spent_s[False], spent_s[True], verify_s)))
        is_beside = any(_is_ahead(forward) for forward in forwards)
        context = self._num_prompt - 1 + round_.position
        verified_s = verdict.end_s - verdict.predict_s
        shape = OpShape(Actor.TARGET, OpKind.VERIFY, round_.num_pending + 1, 1, context)
        self._add(index, self._target_device, shape, verdict.start_s, verified_s, is_beside)
        shape = OpShape(Actor.HOST, OpKind.HOST, round_.num_pending, round_.num_branches, context)
        self._add(index, "host", shape, end_s - host_s, end_s)
        if verdict.predict_s:
            shape = OpShape(Actor.TARGET, OpKind.PREDICT, 1, 1, context)
            self._add(index, self._target_device, shape, verified_s, verdict.end_s, is_beside)
        self._add_forwards(index, forwards)
        self._rounds.append((round_, RoundTimes(start_s, end_s, sum(spent_s.values()), verify_s)))

    def _add_forwards(self, index: int, forwards: list[Forward]) -> None:
        for forward in forwards:
            shape, start_s, end_s, read_s = forward
            is_ahead = _is_ahead(forward)
            self._add(index, self._draft_device, shape, start_s, end_s, is_ahead)
            if read_s:
                shape = shape._replace(kind=OpKind.READ, num_tokens=1)
                self._add(index, self._draft_device, shape, end_s, end_s + read_s, is_ahead)

    def _add(
        self, index: int, device: str, shape: OpShape, start_s: float, end_s: float, is_beside: bool = False
    ) -> None:
        self._ops.append(op_of(self._request_id, index, device, shape, start_s, end_s, is_beside=is_beside))


def _is_ahead(forward: Forward) -> bool:
    """Whether the draft did it while the target verified."""
    return forward.shape.kind in (OpKind.LOOK, OpKind.BRANCH)


class _NoRecorder:
    """Writes nothing down: the other side of the recorder's cost."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add_prefill(self, prefill: Prefill) -> None:
        """Forget it."""
        self._draft.take_forwards()

    def add_round(self, round_: Round, start_s: float, end_s: float, verdict: TargetVerdict) -> None:
        """Forget it."""
        self._draft.take_forwards()

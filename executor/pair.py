"""A pair ready to decode: the draft and all decisions in this process, the target in its own or on its own stream."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch

from executor.errors import ExecutorError, LogitsError
from executor.hrad.predictor import check_classes, check_pair, predicted_window, read_card
from executor.loop import Decoded, run_request
from executor.models.engines.base import Engine
from executor.models.loading import check_vocabularies, eos_token_ids, follow_rules, load_engine, load_tokenizer
from executor.models.names import check_drafter, resolve_model, resolve_predictor
from executor.models.settings import EngineKind, PairSettings, Transport
from executor.models.sources.base import resolve_device
from executor.models.stored.gguf_files import local_path
from executor.noise import noise_of
from executor.remote.client import TargetClient
from executor.remote.transport import check_transport
from executor.request import Request
from executor.resident.draft import GraphDraft
from executor.resident.engine import ResidentEngine
from executor.resident.shared import SharedDevice
from executor.resident.target import GraphTarget
from executor.roles.annotate import Annotation, annotate
from executor.roles.draft import Draft
from executor.roles.draft_side import DraftSide
from executor.roles.ratio import RatioDraft, RatioTarget
from executor.roles.target import Target
from executor.roles.target_side import load_target
from sim.decoding.policies.base import Policy
from sim.decoding.rules import check_rule
from sim.decoding.world import World
from traces.processes import num_cores
from traces.schema import Rule


class Session:
    """Decodes requests with one pair. Close it, or use it with `with`. A GPU becomes this process's current one.

    Raises ValueError for a pair that cannot run as asked, and `ExecutorError` for a target's process that fails.
    """

    def __init__(self, settings: PairSettings) -> None:
        pair = resolve_pair(settings)
        self._threads, self._cores = torch.get_num_threads(), _allowed_cores()
        self.cores = _pinned_cores(pair, self._cores)
        if pair.engine.device == pair.target_device == "cpu" and num_cores(allowed=len(self._cores) or None) < 2:
            warnings.warn(
                "this process may use one core only, so draft and target take turns on it: overlapped methods cannot overlap "
                "here, and their times support no claim.",
                stacklevel=2,
            )
        self.class_window, self.draft_name, self.rule = predicted_window(pair.hrad), settings.draft, pair.rule
        self._names = {"target": settings.target, "draft": settings.draft}
        trusts = pair.engine.trusts_remote_code
        self.tokenizer = load_tokenizer(pair.target, trusts_remote_code=trusts)
        self.eos_ids = frozenset(eos_token_ids(pair.target, trusts_remote_code=trusts))
        self.devices = (f"{settings.engine.device}:draft", f"{settings.target_engine.device}:target")
        self._roles: _Roles | None = None
        torch.set_num_threads(1)
        try:
            if self.cores:
                _BOUND.append(self._cores)
                os.sched_setaffinity(0, {self.cores[0]})
            if (device := resolve_device(pair.engine.device)).type == "cuda":
                torch.cuda.set_device(device)
            self._roles = _roles_of(pair, self.cores)
        except BaseException:
            self.close()
            raise
        self.engine, self.draft, self.capacity = self._roles.engine, self._roles.draft, self._roles.engine.capacity

    @property
    def num_captures(self) -> int:
        """Graphs captured so far: a run in which this grew was no measurement. Always 0 without graphs."""
        return self.draft.num_captures + self._roles.target.num_captures if self._roles is not None else 0

    @property
    def layouts(self) -> dict[str, dict[str, str]]:
        """How each model's weights lie in memory, where its engine has a choice."""
        return {"target": dict(self.target.layouts), "draft": dict(getattr(self.engine, "layouts", {}))}

    @property
    def target(self) -> Target:
        """The target, in its process or on its stream."""
        if self._roles is None or not self._roles.target.is_alive:
            raise ExecutorError("the target process is gone; start a new session.")
        return self._roles.target

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, with the tokenizer's own special tokens."""
        return tuple(self.tokenizer.encode(text))

    def decode_text(self, tokens: list[int]) -> str:
        """Text of generated tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def decode_whole(self, tokens: list[int]) -> str:
        """Text of generated tokens with special tokens written out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    @torch.inference_mode()
    def run(
        self,
        request: Request,
        policy: Policy,
        *,
        request_id: int = 0,
        is_recording: bool = True,
        outcomes: World | None = None,
    ) -> Decoded:
        """Decode one request. Without recording only its tokens and its start and end are kept. A run that fails, or is
        interrupted, closes the session.

        outcomes: synthetic acceptance, see `executor.loop.run_request`.
        """
        check_classes(policy, self.class_window)
        check_drafter(policy, self.draft_name)
        check_serial(policy, self.rule)
        if policy.needs.is_timed and not isinstance(self.draft, DraftSide):
            raise ValueError(
                "a free-running draft needs a draft that steps one by one, but the resident engine replays graphs: give "
                "num_further=0, or use the static engine."
            )
        longest = len(request.tokens) + request.max_new_tokens
        if longest > self.capacity:
            raise ValueError(
                f"prompt {request.prompt_id} needs {longest} cached tokens, but the session's capacity is "
                f"{self.capacity}; use a larger capacity or a smaller max_new_tokens."
            )
        is_done = False
        try:
            decoded = run_request(
                request,
                policy,
                request_id=request_id,
                draft=self.draft,
                target=self.target,
                noise=self.draft.make_noise(request),
                eos_ids=self.eos_ids,
                decode_text=self.decode_text,
                decode_whole=self.decode_whole,
                devices=self.devices,
                is_recording=is_recording,
                outcomes=outcomes,
            )
            self.draft.synchronize()
            is_done = True
            return decoded
        except LogitsError as error:
            raise LogitsError(
                error.role, f"{self._names[error.role]} cannot decode {request.prompt_id}: {error}"
            ) from error
        except torch.OutOfMemoryError as error:
            raise ExecutorError(
                f"{self.devices[0]} ran out of memory on prompt {request.prompt_id} under {policy}: lower the capacity, "
                "max_new_tokens or the number of branches."
            ) from error
        finally:
            if not is_done:  # the target may be in the midst of a round that nobody waits for
                self.close()

    @torch.inference_mode()
    def annotate(self, decoded: Decoded, *, request_id: int, tail_depth: int = 16) -> Annotation:
        """The alignment trace of a finished request."""
        self.draft.synchronize()
        return annotate(
            decoded,
            request_id=request_id,
            engine=self.engine,
            target=self.target,
            noise=noise_of(decoded.request, self.engine.vocab_size, self.engine.device, self.engine.head_tokens),
            tail_depth=tail_depth,
        )

    def close(self) -> None:
        """Stop the target; give back cores, threads and graphs."""
        if self._roles is not None:
            self._roles.target.close()
            self._roles.draft.close()
        if self.cores:
            _BOUND.pop()
            if not _BOUND:
                os.sched_setaffinity(0, self._cores)
            self.cores = []
        torch.set_num_threads(self._threads)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve_pair(settings: PairSettings) -> PairSettings:
    """The same pair with names replaced by folders, devices by their numbers, and the vocabulary that both share.

    Raises ValueError for devices that do not exist, two vocabularies, or a predictor of another pair.
    """
    # Devices with their numbers: the current GPU of another process may be another one.
    places = [resolve_device(engine.device) for engine in (settings.engine, settings.target_engine)]
    check_transport(settings.transport, (places[0], places[1]))
    target = str(local_path(resolve_model(settings.target, "target")))
    draft = str(local_path(resolve_model(settings.draft, "draft")))
    hrad = resolve_predictor(settings.hrad)
    if hrad:
        check_pair(read_card(hrad), target, draft)
    vocab_size = check_vocabularies(
        target,
        draft,
        allows_difference=settings.allows_vocab_difference,
        trusts_remote_code=settings.engine.trusts_remote_code,
    ).size
    pair = replace(
        settings,
        target=target,
        draft=draft,
        hrad=hrad,
        engine=replace(settings.engine, device=str(places[0]), vocab_size=vocab_size, embedding_of=target),
        target_device=str(places[1]),
    )
    if pair.draft_sms and not _is_on_one_device(pair):
        raise ValueError(
            "draft_sms is for two models that share a GPU (engine resident, one device, mailbox): leave it out."
        )
    return pair


class _Roles(NamedTuple):
    """Both halves of the step machine. engine: the draft's."""

    target: Target
    draft: Draft
    engine: Engine


def _is_on_one_device(pair: PairSettings) -> bool:
    """Whether both models run in this process, on two streams of one device."""
    is_resident = pair.engine.kind is EngineKind.RESIDENT
    return is_resident and pair.engine.device == pair.target_device and pair.transport is Transport.MAILBOX


def check_serial(policy: Policy, rule: Rule) -> None:
    """Refuse what the rule's loop cannot run: policies that overlap, or that read the draft's own draw. Raises ValueError."""
    check_rule(policy, rule)
    if rule is not Rule.SHARED and policy.overlaps:
        raise ValueError(
            f"{type(policy).__name__} drafts while the target verifies, which the executor does under shared noise only; "
            f"with the rule {rule.value} take a serial policy, such as fixed_length:draft_length=4."
        )


def _roles_of(pair: PairSettings, cores: list[int]) -> _Roles:
    if pair.rule is not Rule.SHARED:
        return _one_process(pair)
    return _one_device(pair) if _is_on_one_device(pair) else _two_processes(pair, cores)


def _one_process(pair: PairSettings) -> _Roles:
    """Both roles here, one after the other."""
    if pair.engine.kind is EngineKind.RESIDENT or pair.hrad:
        raise ValueError(
            f"the rule {pair.rule.value} runs on the static and hugging_face engines, and without an H-RAD predictor."
        )
    target_engine, _ = load_target(pair)
    draft_engine = follow_rules(load_engine(pair.draft, pair.engine), pair)
    draft = RatioDraft(draft_engine, pair.rule)
    return _Roles(RatioTarget(target_engine, draft), draft, draft_engine)


def _one_device(pair: PairSettings) -> _Roles:
    engine, predictor = load_target(pair)
    target_engine = _resident(engine, pair.target)
    shared = SharedDevice.of(target_engine, is_shared=True, draft_sms=pair.draft_sms)
    target = GraphTarget(target_engine, shared, predictor=predictor, fixed_width=pair.verify_width or None)
    draft_engine = _resident(load_engine(pair.draft, pair.engine), pair.draft)
    return _Roles(target, GraphDraft(draft_engine, shared), draft_engine)


def _two_processes(pair: PairSettings, cores: list[int]) -> _Roles:
    """cores: of this process and of the target's; none where they are not bound."""
    target = TargetClient(pair, core=cores[1] if cores else None)
    try:
        engine = follow_rules(load_engine(pair.draft, pair.engine), pair)
        if pair.engine.kind is not EngineKind.RESIDENT:
            return _Roles(target, DraftSide(engine), engine)
        draft_engine = _resident(engine, pair.draft)
        return _Roles(target, GraphDraft(draft_engine, SharedDevice.of(draft_engine, is_shared=False)), engine)
    except BaseException:
        target.close()
        raise


def _resident(engine: Engine, name: str) -> ResidentEngine:
    """An engine whose steps can be graphs."""
    if not isinstance(engine, ResidentEngine):
        raise ValueError(f"the resident engine runs models, but the draft is {name}; use the static engine for it.")
    return engine


_BOUND: list[set[int]] = []  # the cores that this process could use before each of its open sessions bound it to one


def _allowed_cores() -> set[int]:
    """The cores that this process could use before a session bound it to one; empty where the system does not say."""
    if _BOUND:
        return _BOUND[0]
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _pinned_cores(pair: PairSettings, allowed: set[int]) -> list[int]:
    """The cores of the draft's and the target's process; none where they are not to be bound."""
    is_on_cpu = pair.engine.device == pair.target_device == "cpu"
    has_two = len(allowed) > 1 and num_cores(allowed=len(allowed)) > 1
    return sorted(allowed)[:2] if pair.is_pinned and is_on_cpu and has_two else []

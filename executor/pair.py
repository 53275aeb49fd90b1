"""A pair ready to decode: the draft and all decisions in this process, the target in its own or on its own stream."""

from __future__ import annotations

import os
from typing import Any

import torch

from executor.errors import ExecutorError
from executor.hrad.predictor import check_classes, check_pair, read_card
from executor.loop import Decoded, Outcomes, run_request
from executor.models.engines.base import Engine
from executor.models.loading import check_vocabularies, eos_token_ids, load_engine, load_tokenizer
from executor.models.sources.base import EngineKind, resolve_device
from executor.noise import NoiseTable
from executor.remote.client import TargetClient
from executor.remote.transport import Transport, check_transport, parse_transport
from executor.request import Request
from executor.resident.draft import GraphDraft
from executor.resident.engine import ResidentEngine
from executor.resident.shared import SharedDevice
from executor.resident.target import GraphTarget
from executor.roles.annotate import Annotation, annotate
from executor.roles.draft_side import Draft, DraftSide
from executor.roles.target import Target
from executor.roles.target_side import load_target
from sim.decoding.policies.base import Policy
from sim.decoding.policies.serial.prompt_lookup import check_drafter


class Session:
    """Decodes requests with one pair. Close it, or use it with `with`.

    target, draft: Hugging Face ids or folders with one vocabulary, or random:SHAPE (`executor.resident.weights`); the
    draft may be "prompt_lookup", without weights. engine: "static" (fast, Llama-type models), "hugging_face" (any causal
    language model), each with the target in a process of its own; or "resident" (Llama-type models on GPUs, steps as
    graphs: both in this process on two streams of one device, or the target in its own process on another device).
    device: of the draft, and of the target unless target_device names another; a GPU becomes this process's current one.
    transport: how two processes talk, "mailbox" (shared memory, whatever the devices) or "distributed"
    (torch.distributed: NCCL between two GPUs, gloo otherwise), with which the resident target always has its own process.
    The mailbox is the default for two GPUs, too: what crosses is a few ids, which the host knows anyway.
    verify_width: rows of every verification of the resident engine; 0 chooses by the tokens at hand.
    draft_sms: multiprocessors that the draft is confined to where both models share a GPU; 0 is all.
    capacity: cached tokens a model can hold, prompt and branches included.
    hrad: folder of an H-RAD predictor of this very pair, which policies that need classes ask for.
    is_pinned: bind the two processes to one core each (CPU only; unpinned processes may share a core after a wake-up).
    """

    def __init__(
        self,
        target: str,
        draft: str,
        *,
        engine: str = "static",
        device: str = "cpu",
        target_device: str | None = None,
        transport: str = "mailbox",
        dtype: str = "float32",
        capacity: int = 1024,
        is_pinned: bool = True,
        timeout_s: float = 60.0,
        hrad: str | None = None,
        verify_width: int = 0,
        draft_sms: int = 0,
    ) -> None:
        target_device, way = target_device or device, parse_transport(transport)
        devices = (resolve_device(device), resolve_device(target_device))
        check_transport(way, devices)
        if hrad:
            check_pair(read_card(hrad), target, draft)
        self.has_predictor, self.draft_name = bool(hrad), draft
        vocab_size = check_vocabularies(target, draft).size
        self.tokenizer = load_tokenizer(target)
        self.eos_ids = frozenset(eos_token_ids(target))
        self.devices = (f"{device}:draft", f"{target_device}:target")
        self._threads = torch.get_num_threads()
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        is_pinned = is_pinned and all(place.type == "cpu" for place in devices)
        self.cores = sorted(self._cores)[:2] if is_pinned and len(self._cores) > 1 else []
        torch.set_num_threads(1)
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        if self.cores:
            os.sched_setaffinity(0, {self.cores[0]})
        self._target: Target | None = None
        self._shared: SharedDevice | None = None
        self.capacity = capacity
        both: dict[str, Any] = {"engine": engine, "dtype": dtype, "capacity": capacity, "vocab_size": vocab_size}
        places = [str(place) for place in devices]  # with their numbers: another process's current GPU may be another
        is_resident = engine == EngineKind.RESIDENT
        try:
            is_shared = is_resident and devices[0] == devices[1] and way is Transport.MAILBOX
            if draft_sms and not is_shared:
                raise ValueError(
                    "draft_sms is for two models that share a GPU (engine resident, one device, mailbox): leave it out."
                )
            if is_shared:
                target_engine, predictor = load_target(target, device=places[1], hrad=hrad, **both)
                self._shared = SharedDevice.of(_resident(target_engine, target), is_shared=True, draft_sms=draft_sms)
                self._target = GraphTarget(
                    _resident(target_engine, target),
                    self._shared,
                    predictor=predictor,
                    fixed_width=verify_width or None,
                )
            else:
                self._target = TargetClient(
                    target,
                    device=places[1],
                    draft_device=places[0],
                    transport=way,
                    core=self.cores[1] if self.cores else None,
                    timeout_s=timeout_s,
                    hrad=hrad,
                    verify_width=verify_width,
                    **both,
                )
            self.engine = load_engine(draft, device=places[0], **both)
            if is_resident:
                self._shared = self._shared or SharedDevice.of(_resident(self.engine, draft), is_shared=False)
                self._draft: Draft = GraphDraft(_resident(self.engine, draft), self._shared)
            else:
                self._draft = DraftSide(self.engine)
        except BaseException:
            self.close()
            raise

    @property
    def num_captures(self) -> int:
        """Graphs captured so far: a run in which this grew was no measurement. Always 0 without graphs."""
        drafts = self._draft.num_captures if isinstance(self._draft, GraphDraft) else 0
        return drafts + (self._target.num_captures if self._target is not None else 0)

    @property
    def draft(self) -> Draft:
        """The draft's side of the step machine."""
        return self._draft

    @property
    def target(self) -> Target:
        """The target, in its process or on its stream."""
        if self._target is None or not self._target.is_alive:
            raise ExecutorError("the target process is gone; start a new session.")
        return self._target

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
        outcomes: Outcomes | None = None,
    ) -> Decoded:
        """Decode one request. Without recording only its tokens and its start and end are kept.

        outcomes: synthetic acceptance, see `executor.loop.run_request`.
        """
        check_classes(policy, self.has_predictor)
        check_drafter(policy, self.draft_name)
        longest = len(request.tokens) + request.max_new_tokens
        if longest > self.capacity:
            raise ValueError(
                f"prompt {request.prompt_id} needs {longest} cached tokens, but the session's capacity is "
                f"{self.capacity}; use a larger capacity or a smaller max_new_tokens."
            )
        try:
            return run_request(
                request,
                policy,
                request_id=request_id,
                draft=self._draft,
                target=self.target,
                noise=None if self._shared is not None else self._noise(request),
                eos_ids=self.eos_ids,
                decode_text=self.decode_text,
                decode_whole=self.decode_whole,
                devices=self.devices,
                is_recording=is_recording,
                outcomes=outcomes,
            )
        except torch.OutOfMemoryError as error:
            raise ExecutorError(
                f"{self.devices[0]} ran out of memory on prompt {request.prompt_id} under {policy}: lower the capacity, "
                "max_new_tokens or the number of branches."
            ) from error

    @torch.inference_mode()
    def annotate(self, done: Decoded, *, request_id: int, tail_depth: int = 16) -> Annotation:
        """The alignment trace of a finished request."""
        if self._shared is not None:
            self._shared.synchronize()
        return annotate(
            done,
            request_id=request_id,
            engine=self.engine,
            target=self.target,
            noise=self._noise(done.request),
            tail_depth=tail_depth,
        )

    def _noise(self, request: Request) -> NoiseTable | None:
        if request.sampling.temperature == 0:
            return None
        noise = NoiseTable(request.seed, request.noise_key, self.engine.vocab_size, self.engine.device)
        noise.prepare(request.max_new_tokens)  # made before the clock starts; the target makes its own in the prefill
        return noise

    def close(self) -> None:
        """Stop the target; give back cores, threads and graphs."""
        if self._target is not None:
            self._target.close()
        draft = getattr(self, "_draft", None)
        if isinstance(draft, GraphDraft):
            draft.release()
        if self.cores:
            os.sched_setaffinity(0, self._cores)
            self.cores = []
        torch.set_num_threads(self._threads)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _resident(engine: Engine, name: str) -> ResidentEngine:
    """An engine whose steps can be graphs."""
    if not isinstance(engine, ResidentEngine):
        raise ValueError(f"the resident engine runs models, but the draft is {name}; use the static engine for it.")
    return engine

"""A pair ready to decode: the draft and all decisions in this process, the target in its own or on its own stream."""

from __future__ import annotations

import os

import torch

from executor.annotate import Annotation, annotate
from executor.draft_side import Draft, DraftSide
from executor.engines.prompt_lookup import check_drafter
from executor.errors import ExecutorError
from executor.hrad.predictor import check_classes, check_pair, load_predictor, read_card
from executor.loop import Decoded, Outcomes, run_request
from executor.models import EngineKind, check_vocabularies, eos_token_ids, load_engine, load_tokenizer
from executor.noise import NoiseTable
from executor.requests import Request
from executor.resident.draft import GraphDraft
from executor.resident.engine import PAD, ResidentEngine
from executor.resident.shared import SharedDevice
from executor.resident.target import GraphTarget
from executor.target_client import Target, TargetClient
from sim.policies.base import Policy


class Session:
    """Decodes requests with one pair. Close it, or use it with `with`.

    target, draft: Hugging Face ids or folders with one vocabulary, or random:SHAPE (`executor.resident.weights`); the
    draft may be "prompt_lookup", without weights. engine: "static" (fast, Llama-type models), "hugging_face" (any causal
    language model), each with the target in a process of its own; or "resident" (Llama-type models on one GPU, both in
    this process on two streams, steps as graphs).
    verify_width: rows of every verification of the resident engine; 0 chooses by the tokens at hand.
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
        dtype: str = "float32",
        capacity: int = 1024,
        is_pinned: bool = True,
        timeout_s: float = 60.0,
        hrad: str | None = None,
        verify_width: int = 0,
    ) -> None:
        if hrad:
            check_pair(read_card(hrad), target, draft)
        self.has_predictor, self.draft_name = bool(hrad), draft
        vocab_size = check_vocabularies(target, draft).size
        self.tokenizer = load_tokenizer(target)
        self.eos_ids = frozenset(eos_token_ids(target))
        self.devices = (f"{device}:draft", f"{device}:target")
        self._threads = torch.get_num_threads()
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self.cores = sorted(self._cores)[:2] if is_pinned and device == "cpu" and len(self._cores) > 1 else []
        torch.set_num_threads(1)
        if self.cores:
            os.sched_setaffinity(0, {self.cores[0]})
        self._target: Target | None = None
        self._shared: SharedDevice | None = None
        self.capacity = capacity
        try:
            if engine == EngineKind.RESIDENT:
                self._open_resident(target, draft, device, dtype, vocab_size, hrad, verify_width)
                return
            self._target = TargetClient(
                target,
                engine=engine,
                device=device,
                dtype=dtype,
                capacity=capacity,
                vocab_size=vocab_size,
                core=self.cores[1] if self.cores else None,
                timeout_s=timeout_s,
                hrad=hrad or None,
            )
            self.engine = load_engine(
                draft, engine=engine, device=device, dtype=dtype, capacity=capacity, vocab_size=vocab_size
            )
        except BaseException:
            self.close()
            raise
        self._draft: Draft = DraftSide(self.engine)

    def _open_resident(
        self, target: str, draft: str, device: str, dtype: str, vocab_size: int, hrad: str | None, verify_width: int
    ) -> None:
        """Both models in this process, on one device."""
        predictor = load_predictor(hrad, device) if hrad else None
        num_layers = predictor.card.num_feature_layers if predictor else 0
        engines = [
            load_engine(
                path,
                engine=EngineKind.RESIDENT,
                device=device,
                dtype=dtype,
                capacity=self.capacity,
                vocab_size=vocab_size,
                num_feature_layers=num_feature_layers,
            )
            for path, num_feature_layers in ((target, num_layers), (draft, 0))
        ]
        target_engine, draft_engine = engines
        if not (isinstance(target_engine, ResidentEngine) and isinstance(draft_engine, ResidentEngine)):
            raise ValueError(
                f"the resident engine runs models, but the draft is {draft}; use the static engine for it."
            )
        if predictor is not None:
            predictor.check_engine(target_engine)
        self._shared = SharedDevice(
            target_engine.device, num_positions=self.capacity + PAD + 1, vocab_size=target_engine.vocab_size
        )
        self.engine = draft_engine
        self._draft = GraphDraft(draft_engine, self._shared)
        self._target = GraphTarget(target_engine, self._shared, predictor=predictor, fixed_width=verify_width or None)

    @property
    def num_captures(self) -> int:
        """Graphs captured so far: a run in which this grew was no measurement. Always 0 without graphs."""
        sides = (self._draft, self._target)
        return sum(side.num_captures for side in sides if isinstance(side, GraphDraft | GraphTarget))

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

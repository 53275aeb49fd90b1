"""The target on a stream of its own: verification as a graph, one wait a round.

It answers as `executor.roles.target.Target` does. On one GPU it runs in the draft's process, for two would take turns
where two streams can share; on a GPU of its own `executor.remote.worker` gives it a process of its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from executor.errors import ExecutorError
from executor.hrad.features import first_features
from executor.hrad.predictor import Predictor
from executor.request import Request
from executor.resident.engine import ResidentEngine
from executor.resident.graphs import Graphs, Handover
from executor.resident.shared import SharedDevice
from executor.roles.scoring import Scores, score_sequence
from executor.roles.target import Prefill, TargetVerdict
from executor.verification import check_finite, choose, noisy_scores
from sim.decoding.machine import ClassProbs
from traces.schema import Sampling

VERIFY_WIDTHS = (1, 2, 4, 8, 16, 32, 64)


class GraphTarget:
    """The target's view of one request.

    fixed_width: rows that every verification runs with, so that products have one shape and every method's outputs are
    equal to the bit, whatever the precision; None takes the next of VERIFY_WIDTHS.
    """

    def __init__(
        self,
        engine: ResidentEngine,
        shared: SharedDevice,
        *,
        predictor: Predictor | None = None,
        fixed_width: int | None = None,
    ) -> None:
        self.engine, self._shared = engine, shared
        self._predictor = predictor
        self._fixed_width = fixed_width
        self._num_feature_layers = engine.num_feature_layers
        self._stream = shared.target_stream
        self._graphs = Graphs(engine.device, self._stream)
        self._controls = Handover(3, engine.device)
        self._newest = Handover(max(VERIFY_WIDTHS[-1], fixed_width or 0), engine.device)
        self._marks = shared.marks
        self._host = torch.zeros(2, dtype=torch.int64, pin_memory=engine.device.type == "cuda")
        self.is_alive = True
        self.layouts: Mapping[str, str] = {}

    @property
    def num_captures(self) -> int:
        """Graphs captured so far."""
        return self._graphs.num_captures

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Start a request and its prefill; `wait_prefill` waits for it."""
        if not self.is_alive:
            raise ExecutorError("the target was closed; start a new session.")
        self._sampling, self._predicts = request.sampling, predicts
        self._num_prompt = len(request.tokens)
        self.engine.num_feature_layers = self._num_feature_layers if predicts else 0
        self._shared.begin(request)
        self.engine.reset()
        with self._shared.on(self._stream):
            self._start = self._marks.mark()
            if self._num_prompt > 1:
                self.engine.extend(request.tokens[:-1], last_only=True)
            classes = self._classes(first_features(self.engine, self._num_prompt), request.tokens[-1])
            self._end = self._marks.mark()
        self._first_classes = classes

    def wait_prefill(self) -> Prefill:
        """The end of the prefill under way."""
        self._wait()
        start_s, end_s = self._marks.seconds(self._start), self._marks.seconds(self._end)
        return Prefill(self._num_prompt - 1, start_s, end_s, self._first_classes)

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """Start to verify the pending tokens after `last`; a draft on this device has laid both on the line already."""
        num = len(pending)
        width = self._fixed_width or next((width for width in VERIFY_WIDTHS if width > num), 0)
        if num >= width:
            raise ValueError(f"{num} pending tokens do not fit a verification of {width or VERIFY_WIDTHS[-1]} rows.")
        if self._stream is not None and self._shared.draft_stream is not None:
            self._stream.wait_stream(self._shared.draft_stream)
        with self._shared.on(self._stream):
            if not self._shared.is_shared:
                self._newest.put([last, *pending])
                self._shared.line[num_cached : num_cached + 1 + num].copy_(self._newest.values[: 1 + num])
            self._controls.put([num_cached, num, num_cached + 1 - self._num_prompt])
            self._start = self._marks.mark()
            noise = self._shared.noise.data_ptr() if self._sampling.temperature > 0 else 0
            key = (width, self._sampling, self.engine.num_feature_layers, noise)
            outcome, self._features = self._graphs.run(key, lambda: self._verify_body(width))
            self._end = self._marks.mark()
            self._host.copy_(outcome, non_blocking=True)
        self._num_cached = num_cached

    def has_verdict(self) -> bool:
        """False: nobody asks, for drafts on graphs run a fixed number of steps."""
        return False

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way."""
        self._wait()
        num_accepted, next_token = self._host.tolist()
        if next_token < 0:
            check_finite([math.nan], "target", first_position=self._num_cached + num_accepted, dtype=self.engine.dtype)
        self.engine.set_length(self._num_cached + 1 + num_accepted)
        start_s, end_s = self._marks.seconds(self._start), self._marks.seconds(self._end)
        predict_s, classes = 0.0, None
        if self._predicts:
            started = time.perf_counter()
            classes = self._classes(self._features[num_accepted : num_accepted + 1], next_token)
            predict_s = time.perf_counter() - started
        return TargetVerdict(num_accepted, next_token, start_s, end_s + predict_s, predict_s, classes)

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks."""
        self.engine.num_feature_layers = self._num_feature_layers
        yield from score_sequence(self.engine, self._predictor, tokens, num_prompt, sampling)

    def close(self) -> None:
        """Give the graphs' memory back."""
        self.is_alive = False
        self._graphs.clear()

    def _verify_body(self, width: int) -> tuple[Tensor, Tensor]:
        """One forward over the last committed token and the pending ones -> (num_accepted, next_token), features."""
        engine, shared = self.engine, self._shared
        num_cached, num_pending, generated = self._controls.values.unbind()
        positions, slots, view = engine.line(num_cached, width)
        ids = shared.line.index_select(0, positions)
        hidden, features = engine.forward(ids, positions, slots, view)
        row = torch.arange(width, device=engine.device)
        noise = shared.noise_at(generated + row) if self._sampling.temperature > 0 else None
        scores = noisy_scores(engine.logits(hidden), self._sampling, noise)
        tokens = choose(scores)
        is_sure = scores.gather(-1, tokens[:, None])[:, 0].isfinite()
        tokens = torch.where(is_sure, tokens, -1)  # which no token equals, and which the host refuses
        is_accepted = (tokens[:-1] == ids[1:]) & (row[:-1] < num_pending)
        num_accepted = is_accepted.long().cumprod(dim=0).sum()[None]
        return torch.cat([num_accepted, tokens.gather(0, num_accepted)]), features

    def _classes(self, features: Tensor, newest: int) -> ClassProbs | None:
        if not self._predicts:
            return None
        assert self._predictor is not None, "the session refuses such a policy without a predictor"
        reject, confidence, accept = self._predictor(features, self.engine.embed([newest]))[0].tolist()
        return reject, confidence, accept

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

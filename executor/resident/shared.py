"""What a draft and a target need on a device, shared if it is one: the line of token ids, the noise, their streams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from executor.noise import gumbel
from executor.request import Request
from executor.resident.engine import PAD, ResidentEngine
from executor.resident.graphs import Marks
from executor.resident.streams import two_streams

_NUM_SPARE = 64  # positions behind a request's end that a step may look at
_NOISE_NUMBERS = 1 << 21  # made at once, which bounds the memory of the generator's integers


class SharedDevice:
    """One device with a stream for the draft and one, of higher priority, for the target.

    is_shared: whether both models are on it; otherwise only one of the two streams is used, the other model has a device
    in another process, and each side lays down by itself what it needs of a request.
    line: (capacity + pad,) ids of committed and pending tokens by position, written by the draft's side.
    draft_sms: multiprocessors that the draft is confined to; 0 is all (`executor.resident.streams`).
    noise: (positions, vocab) shared noise of the request by generated position; empty at temperature 0.
    marks: the clock of both streams, started anew with every request.
    """

    def __init__(
        self, device: torch.device, *, num_positions: int, vocab_size: int, is_shared: bool = True, draft_sms: int = 0
    ) -> None:
        self.device, self.is_shared = device, is_shared
        self.vocab_size = vocab_size
        self.line = torch.zeros(num_positions, dtype=torch.int64, device=device)
        self.noise = torch.empty(0, vocab_size, device=device)
        self.marks = Marks(device, time.perf_counter)
        self._is_cuda = device.type == "cuda"
        self._streams = two_streams(device, draft_sms)
        self.draft_stream, self.target_stream = self._streams.draft, self._streams.target

    @classmethod
    def of(cls, engine: ResidentEngine, *, is_shared: bool, draft_sms: int = 0) -> SharedDevice:
        """The device of an engine, with a line as long as its cache."""
        return cls(
            engine.device,
            num_positions=engine.capacity + PAD + 1,
            vocab_size=engine.vocab_size,
            is_shared=is_shared,
            draft_sms=draft_sms,
        )

    @contextmanager
    def on(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Work on a stream; on a CPU there is none and work is done at once."""
        if stream is None:
            yield
        else:
            with torch.cuda.stream(stream):
                yield

    def begin(self, request: Request) -> None:
        """Lay down a request's prompt and noise. Where both models are, the target's side does it for both.

        A table that is large enough stays where it is, so that graphs that read it stay valid.
        """
        prompt = torch.tensor(request.tokens, dtype=torch.int64)
        self.line[: len(prompt)].copy_(prompt)
        if request.sampling.temperature > 0:
            num = request.max_new_tokens + _NUM_SPARE
            if len(self.noise) < num:
                self.noise = torch.empty(num, self.vocab_size, device=self.device)
            rows = max(1, _NOISE_NUMBERS // self.vocab_size)
            for first in range(0, num, rows):
                last = min(first + rows, num)
                made = gumbel(request.seed, request.noise_key, range(first, last), self.vocab_size, device=self.device)
                self.noise[first:last].copy_(made)
        self.marks.start()

    def noise_at(self, positions: Tensor) -> Tensor:
        """Noise of generated positions, (n,) int64 -> (n, vocab); rows past the table's end repeat its last."""
        return self.noise.index_select(0, positions.clamp(max=len(self.noise) - 1))

    def synchronize(self) -> None:
        """Wait for everything."""
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

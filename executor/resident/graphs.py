"""Steps captured once and replayed: on CUDA a graph for each key, elsewhere the very same calls made one by one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

MAX_GRAPHS = 512
_RING = 64  # hand-overs that may be under way at once


class Graphs:
    """Captured steps of one stream. The bodies read and write device tensors only, and may be run twice in a row.

    A graph's outputs stay in place until the same graph runs again.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._is_cuda = device.type == "cuda"
        self._stream = stream
        self._graphs: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self._is_cuda else None
        self.num_captures = 0

    def run(self, key: Hashable, body: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run a step on the stream; capture it the first time. key: everything in the body that is not a device tensor."""
        if not self._is_cuda:
            return body()
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._graphs[key] = self._captured(body)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        graph, outputs = captured
        with torch.cuda.stream(self._stream):
            graph.replay()
        return outputs

    def _captured(self, body: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        with torch.cuda.stream(self._stream):
            body()  # compiles kernels, makes the library's workspaces
        torch.cuda.synchronize()
        self.num_captures += 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = body()
        return graph, outputs

    def clear(self) -> None:
        """Forget all graphs and give their memory back."""
        self._graphs.clear()
        if self._is_cuda:
            self._pool = torch.cuda.graph_pool_handle()  # a pool ends with its last graph


class Handover:
    """A few integers for a stream's next step, without waiting: pinned memory, copied when the stream gets there."""

    def __init__(self, size: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.values = torch.zeros(size, dtype=torch.int64, device=device)
        self._ring = torch.zeros(_RING, size, dtype=torch.int64, pin_memory=is_cuda)
        self._next = 0

    def put(self, numbers: Sequence[int]) -> None:
        """Copy numbers to the first places of `values`, on the current stream."""
        staged = self._ring[self._next, : len(numbers)]
        self._next = (self._next + 1) % _RING
        staged.copy_(torch.tensor(numbers))
        self.values[: len(numbers)].copy_(staged, non_blocking=True)


class Marks:
    """When a stream reached its steps, in seconds of time.perf_counter; on a CPU that is when the host did."""

    def __init__(self, device: torch.device, now: Callable[[], float]) -> None:
        self._is_cuda = device.type == "cuda"
        self._now = now
        self._zero: torch.cuda.Event | None = None
        self._zero_s = 0.0

    def start(self) -> None:
        """Tie the device's clock to the host's. Waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
            self._zero = _timed_event()
            self._zero.record()
            self._zero.synchronize()
        self._zero_s = self._now()

    def mark(self) -> torch.cuda.Event | float:
        """The moment at which the current stream gets here."""
        if not self._is_cuda:
            return self._now()
        event = _timed_event()
        event.record()
        return event

    def seconds(self, mark: torch.cuda.Event | float) -> float:
        """That moment, once it has passed."""
        if isinstance(mark, float):
            return mark
        assert self._zero is not None, "marks are read after start"
        passed_ms: float = self._zero.elapsed_time(mark)
        return self._zero_s + passed_ms / 1e3


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types here

"""A channel over torch.distributed, point to point: NCCL between two GPUs, or gloo between two processes.

A message is one bucket of 64-bit words, so that a round costs one send each way; only what does not fit, a long prompt,
follows in a second send. The process group is our own and not the default one: a user's program may have that, and many
sessions may live in one process.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import FileStore, Work  # type: ignore[attr-defined]  # torch's stubs do not export it

from executor.remote.channel import Message, no_check

NUM_WORDS = 256  # of the bucket: a round's words, at draft lengths up to 250
_HEADER = 3  # opcode, number of integers, number of floats
_TAG = 0
_HELLO = 0
_MEET_S = 60.0  # both processes come to the meeting at once
_FOREVER_S = 365 * 86400.0  # a process that waits for its next command is not late
_SLACK_S = 0.05  # gloo counts whole milliseconds
_SPIN_S, _NAP_S = 0.02, 0.0002
# A round trip lies between two messages of one side, so that an older send is over; its words may go then.
_MAX_SENDS = 8


class _Group(Protocol):
    """What is used of torch's process groups, whose stubs lack it."""

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...
    def abort(self) -> None: ...


class DistributedChannel:
    """A `Channel` of two processes that meet at the file `store`; rank is 0 or 1.

    device: where this end's words lie. A GPU means NCCL, whose waiting receives keep a little of that GPU busy; the CPU
    means gloo, which notices the end of the other process by itself and calls no `check`.
    """

    def __init__(self, store: Path, rank: int, device: torch.device) -> None:
        self._peer, self._device = 1 - rank, device
        self._polls = device.type == "cuda"
        with _as_connection_errors():
            self._group = _meet(store, rank, is_nccl=self._polls)
        self._sends: deque[tuple[Work, Tensor]] = deque(maxlen=_MAX_SENDS)
        # NCCL connects with the first message, and both must be there: that is now, and not at a user's first request.
        if rank == 0:
            self.post(Message(_HELLO))
        else:
            self.wait(timeout_s=_MEET_S)

    def post(self, message: Message) -> None:
        """Send without waiting for the receiver."""
        words = pack_words(message)
        for piece in (words[:NUM_WORDS], words[NUM_WORDS:]):
            if len(piece):
                sent = torch.from_numpy(piece).to(self._device)
                with _as_connection_errors():
                    self._sends.append((self._group.send([sent], self._peer, _TAG), sent))

    def has_message(self) -> bool:
        """False: a receive that is under way cannot be asked without waiting."""
        return False

    def wait(self, check: Callable[[], None] = no_check, timeout_s: float = math.inf) -> Message:
        """The next message; see `Channel.wait`."""
        deadline = time.perf_counter() + min(timeout_s, _FOREVER_S)
        words = self._receive(NUM_WORDS, check, deadline)
        if missing := num_words(words) - NUM_WORDS:
            words = np.concatenate([words, self._receive(missing, check, deadline)])
        return unpack_words(words)

    def close(self) -> None:
        """Leave the group, whatever is under way."""
        with suppress(RuntimeError):
            self._group.abort()
        self._sends.clear()
        del self._group

    def _receive(self, num: int, check: Callable[[], None], deadline: float) -> NDArray[np.int64]:
        words = torch.zeros(num, dtype=torch.int64, device=self._device)
        with _as_connection_errors():
            work = self._group.recv([words], self._peer, _TAG)
        if self._polls:
            _poll(work, check, deadline)
            with _as_connection_errors():
                work.wait()
        else:
            left_s = max(deadline - time.perf_counter(), 1e-3)
            try:
                with _as_connection_errors():
                    work.wait(timedelta(seconds=left_s))
            except ConnectionError:
                if time.perf_counter() < deadline - _SLACK_S:
                    raise
                raise TimeoutError("nothing came in time") from None
        received: NDArray[np.int64] = words.cpu().numpy()
        return received


def pack_words(message: Message) -> NDArray[np.int64]:
    """A message as 64-bit words, at least a bucket of them: header, integers, floats bit by bit."""
    opcode, integers, floats = message
    end = _HEADER + len(integers)
    words = np.zeros(max(NUM_WORDS, end + len(floats)), np.int64)
    words[:_HEADER] = opcode, len(integers), len(floats)
    words[_HEADER:end] = integers
    words[end : end + len(floats)] = np.asarray(floats, np.float64).view(np.int64)
    return words


def num_words(words: NDArray[np.int64]) -> int:
    """Words of the whole message that starts with this bucket."""
    return max(NUM_WORDS, _HEADER + int(words[1]) + int(words[2]))


def unpack_words(words: NDArray[np.int64]) -> Message:
    """The message that `pack_words` took."""
    opcode, num_integers, num_floats = words[:_HEADER].tolist()
    end = _HEADER + num_integers
    return Message(opcode, words[_HEADER:end].tolist(), words[end : end + num_floats].view(np.float64).tolist())


def _meet(store_path: Path, rank: int, *, is_nccl: bool) -> _Group:
    """The group of two, once both have come."""
    store = FileStore(str(store_path), 2)
    store.set_timeout(timedelta(seconds=_MEET_S))
    if is_nccl:
        from torch.distributed.distributed_c10d import ProcessGroupNCCL  # in torch's CUDA builds only

        nccl = ProcessGroupNCCL.Options()
        nccl._timeout = timedelta(seconds=_FOREVER_S)  # or torch's watchdog would end an idle target's process
        return cast(_Group, ProcessGroupNCCL(store, rank, 2, nccl))
    from torch.distributed.distributed_c10d import ProcessGroupGloo  # not in every build of torch

    gloo = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stubs lack it
    gloo._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1", lazy_init=False)]
    gloo._timeout = timedelta(seconds=_MEET_S)
    return cast(_Group, ProcessGroupGloo(store, rank, 2, gloo))


def _poll(work: Work, check: Callable[[], None], deadline: float) -> None:
    """Wait for NCCL, which does not notice the end of the other process."""
    spin_until = time.perf_counter() + _SPIN_S
    while not work.is_completed():
        now = time.perf_counter()
        if now > spin_until:
            check()
            if now > deadline:
                raise TimeoutError("nothing came in time")
            time.sleep(_NAP_S)


@contextmanager
def _as_connection_errors() -> Iterator[None]:
    """torch's backends raise RuntimeError, whatever happened to the connection."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"torch.distributed: {str(error).splitlines()[0]}") from error

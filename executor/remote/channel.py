"""What a channel between the decision maker's process and the target's promises, whatever carries its messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Message(NamedTuple):
    """What crosses at once: an opcode of `executor.remote.messages`, 64-bit integers, floats. Never a vocabulary row."""

    opcode: int
    integers: Sequence[int] = ()
    floats: Sequence[float] = ()


def no_check() -> None:
    """For an end that hears of the other's end in another way (`traces.processes.end_with`)."""


class Channel(Protocol):
    """One end of a line between two processes that take turns: a command, then its answer."""

    def post(self, message: Message) -> None:
        """Send without waiting for the receiver. Raises ConnectionError where it is known to be gone."""
        ...

    def wait(self, check: Callable[[], None] = no_check, timeout_s: float = math.inf) -> Message:
        """The next message. Raises TimeoutError after timeout_s.

        check is called now and then and raises when nothing will ever come; a channel that notices the end of the other
        process by itself raises ConnectionError instead.
        """
        ...

    def has_message(self) -> bool:
        """Whether `wait` would return at once; False where this end cannot tell."""
        ...

    def close(self) -> None:
        """Release this end."""
        ...

"""How long work says how far it is, and the defaults that say nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

Report: TypeAlias = Callable[[int, int], None]  # (done, total)
Stages: TypeAlias = Callable[[str], AbstractContextManager[Report]]  # by title; what it gives is open for that stage


def silent(done: int, total: int) -> None:
    """A report that nobody reads."""


def silent_stages(title: str) -> AbstractContextManager[Report]:
    """Stages whose reports nobody reads.

    >>> with silent_stages("measuring") as report:
    ...     report(1, 2)
    """
    return nullcontext(silent)

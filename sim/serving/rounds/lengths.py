"""Serial drafts whose length is one for the whole batch: fixed, or chosen by the load before every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from sim.serving.rounds.base import Ints, Rounds, ServerLoad
from sim.serving.rounds.run_lengths import RunLengths


class LengthRule(Protocol):
    """Chooses the draft length of a step; a frozen setting whose `start` gives the state of one replica."""

    @property
    def max_length(self) -> int:
        """The longest draft it may choose."""
        ...

    def start(self) -> Controller:
        """What chooses for one replica."""
        ...


class Controller(Protocol):
    """A rule at work on one replica."""

    def length(self, load: ServerLoad) -> int:
        """The draft length of the next step."""
        ...

    def learn(self, emitted: Ints, length: int) -> None:
        """What came of it. emitted: (running,) accepted tokens and the target's own, also those past a request's end."""
        ...


class LengthRounds:
    """Rounds of serial drafts from a table of run lengths.

    drafts_at_zero: whether the engine runs the draft once a step although the length is 0, to keep the draft's caches (vLLM
    does); otherwise the caches fall behind, and the next draft first reads what it missed.
    trims: whether a draft is cut to what the request may still emit, as our step machine does; engines do not.
    """

    def __init__(
        self, table: RunLengths, rule: LengthRule, *, drafts_at_zero: bool = True, trims: bool = False
    ) -> None:
        self._table, self._controller = table, rule.start()
        self._drafts_at_zero, self._trims = drafts_at_zero, trims
        self.max_pending = rule.max_length
        self._behind = 0

    def begin(self, request: int) -> int:
        return int(self._table.starts[request])

    def num_output_tokens(self, request: int, wanted: int) -> int:
        outputs = self._table.num_outputs
        return wanted if outputs is None else int(outputs[request])

    def after_first_token(self, place: int) -> int:
        return place + 1

    def next(self, places: Ints, left: Ints, load: ServerLoad) -> Rounds:
        """See `RoundSource.next`."""
        running = len(places)
        length = self._controller.length(load)
        if not length:
            ones = _ones(running)
            if self.max_pending and not self._drafts_at_zero:
                self._behind += running
            self._controller.learn(ones, 0)
            return Rounds(ones, ones, 0, 0, keeps_draft=bool(self.max_pending) and self._drafts_at_zero)
        emitted = self._table.emitted(length)[places]
        num_pending = running * length
        if self._trims:
            num_pending = int(np.minimum(left - 1, length).sum())
            np.minimum(emitted, left, out=emitted)
        self._controller.learn(emitted, length)
        if not self._trims:
            np.minimum(emitted, left, out=emitted)
        behind, self._behind = self._behind, 0
        return Rounds(emitted, emitted, num_pending, length, draft_behind=behind)


@dataclass(frozen=True)
class FixedLengthRule:
    """The same length at any load; 0 is decoding without speculation."""

    draft_length: int

    def __post_init__(self) -> None:
        if self.draft_length < 0:
            raise ValueError(f"draft_length must be at least 0, but got {self.draft_length}.")

    @property
    def max_length(self) -> int:
        return self.draft_length

    def start(self) -> Controller:
        return self

    def length(self, load: ServerLoad) -> int:
        return self.draft_length

    def learn(self, emitted: Ints, length: int) -> None:
        pass


@cache
def _ones(count: int) -> Ints:
    """(count,) made once; read only."""
    ones = np.ones(count, dtype=np.int64)
    ones.flags.writeable = False
    return ones

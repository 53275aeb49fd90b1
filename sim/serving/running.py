"""The running requests of a replica as arrays: every request is a column, and a step is a few operations on whole rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.serving.rounds.base import Ints, Rounds

_CONTEXT, _LEFT, _PLACE, _REQUEST = range(4)
_FAR = 1 << 60
_FEW = 32  # requests up to which Python sums as fast as NumPy begins to


class RunningRequest(NamedTuple):
    """One of them. context: tokens in its cache. left: tokens still to emit. place: in the source of its rounds."""

    context: int
    left: int
    place: int
    request: int


class RunningRequests:
    """In the order in which they came to run.

    count: how many. context_tokens: sum of their contexts. contexts, left, places: (count,) views, which every step changes.
    max_emitted: the most tokens that a round gives a request.
    """

    def __init__(self, capacity: int, max_emitted: int) -> None:
        self._columns: Ints = np.zeros((4, capacity), dtype=np.int64)
        self._max_emitted = max_emitted
        self._least_left = _FAR  # no request has fewer tokens left; exact only now and then
        self.context_tokens = 0
        self._resize(0)

    def _resize(self, count: int) -> None:
        self.count = count
        self.contexts, self.left, self.places = self._columns[:_REQUEST, :count]

    def add(self, running: RunningRequest) -> None:
        """One more, the last of them."""
        self._columns[:, self.count] = running
        self.context_tokens += running.context
        self._least_left = min(self._least_left, running.left)
        self._resize(self.count + 1)

    def pop(self) -> RunningRequest:
        """Take the last one away."""
        last = RunningRequest(*self._columns[:, self.count - 1].tolist())
        self.context_tokens -= last.context
        self._resize(self.count - 1)
        return last

    def commit(self, rounds: Rounds) -> int:
        """Every request emits the tokens of its round; gives their number."""
        emitted = rounds.num_emitted
        np.add(self.contexts, emitted, out=self.contexts)
        np.subtract(self.left, emitted, out=self.left)
        np.add(self.places, rounds.steps, out=self.places)
        num_emitted = sum(emitted.tolist()) if self.count <= _FEW else int(np.add.reduce(emitted))
        self.context_tokens += num_emitted
        self._least_left -= self._max_emitted
        return num_emitted

    def take_ended(self) -> list[int]:
        """The requests that have no token left, taken away."""
        if self._least_left > 0 or not self.count:
            return []
        self._least_left = min(self.left.tolist()) if self.count <= _FEW else int(self.left.min())
        if self._least_left > 0:
            return []
        stays = self.left > 0
        columns = self._columns[:, : self.count]
        ended, kept = columns[:, ~stays], columns[:, stays]
        self.context_tokens -= int(ended[_CONTEXT].sum())
        self._columns[:, : kept.shape[1]] = kept
        self._resize(kept.shape[1])
        self._least_left = int(self.left.min()) if self.count else _FAR
        requests: list[int] = ended[_REQUEST].tolist()
        return requests

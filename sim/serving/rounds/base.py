"""The next round of every running request, and who gives it. Outcomes are known here; only time is simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class ServerLoad(NamedTuple):
    """What a rule may know of a replica before a step.

    num_running, num_waiting: requests in the batch and in its queue. kv_share: of the memory that is taken, in [0, 1].
    context_tokens: sum over the running requests.
    """

    num_running: int
    num_waiting: int
    kv_share: float
    context_tokens: int

    @classmethod
    def alike(cls, num_running: int, context: float) -> ServerLoad:
        """A batch whose requests have this context in the mean, with nobody waiting and room in the memory."""
        return cls(num_running, 0, 0.0, round(num_running * context))


class Details(NamedTuple):
    """Rounds that differ from request to request, (running,) each; see `sim.sweep.lockstep.RoundArrays` for the words.

    num_serial_forwards: of the draft before the verification; the first one processes first_tokens, on a cache that holds
    cached_offset tokens more than the target's does.
    """

    num_serial_forwards: Ints
    first_tokens: Ints
    cached_offset: Ints
    num_pending: Ints
    look_lag: Ints
    num_branches: Ints
    num_branch_steps: Ints


def details_of(columns: Mapping[str, Ints]) -> Details:
    """Details of rounds whose ledgers are given as columns, by the names of `sim.decoding.ledger.Ledger`."""
    serial, lag, branches = columns["num_serial"], columns["draft_lag"], columns["num_branches"]
    return Details(
        serial - ((serial > 0) & (lag == 0)),
        np.maximum(lag, 1),
        1 + columns["num_carried"] - lag,
        columns["num_pending"],
        columns["look_lag"],
        branches,
        np.where(branches > 0, columns["num_branch_steps"], 0),
    )


@dataclass(slots=True)
class Rounds:
    """One round of each running request, in their order.

    num_emitted: (running,) tokens that the round gives. steps: (running,) how far the place of each in its source moves on.
    num_pending: draft tokens that are verified, all together.
    draft_length: serial draft tokens, where they are as many for every request; -1 where `details` say more.
    draft_behind: tokens that the draft's caches lack beyond the usual one a request, because it did not run for a while.
    keeps_draft: whether the draft runs once although nothing is drafted, to keep its caches.
    """

    num_emitted: Ints
    steps: Ints
    num_pending: int
    draft_length: int = -1
    details: Details | None = None
    draft_behind: int = 0
    keeps_draft: bool = False

    def first(self, count: int) -> Rounds:
        """Those of the first requests, after later ones were preempted."""
        details = None if self.details is None else Details(*(column[:count] for column in self.details))
        num_pending = self.draft_length * count if details is None else int(details.num_pending.sum())
        emitted, steps = self.num_emitted[:count], self.steps[:count]
        return Rounds(emitted, steps, num_pending, self.draft_length, details, self.draft_behind, self.keeps_draft)


class RoundSource(Protocol):
    """Gives rounds to one replica.

    max_pending: the most draft tokens that a request may ever submit at once.
    """

    max_pending: int

    def begin(self, request: int) -> int:
        """The place of a request before its first token; rounds are asked for by place."""
        ...

    def num_output_tokens(self, request: int, wanted: int) -> int:
        """How many tokens the request emits: as wanted, or as recorded."""
        ...

    def after_first_token(self, place: int) -> int:
        """The place after a first token that came with the prompt."""
        ...

    def next(self, places: Ints, left: Ints, load: ServerLoad) -> Rounds:
        """The next rounds of the running requests. places, left: (running,); left: tokens still to emit, at least 1."""
        ...

"""Run lengths: from every position of an output, how many draft tokens in a row the target would accept.

Under shared noise a draft token is accepted exactly when it is the target's token, so a serial draft of any length K that
starts at position p gets min(K, run[p]) tokens accepted. One table answers every draft length, also one that changes with
the load; a recorded trace and a law of acceptance by position are both such tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.decoding.replay import next_mismatches
from sim.serving.rounds.base import Ints
from traces.schema import RequestTrace

NUM_POSITIONS = 1 << 18  # of a drawn table: enough that requests rarely meet the same stretch
LONGEST_RUN = 64


@dataclass(frozen=True, eq=False)
class RunLengths:
    """runs: (positions,) accepted tokens in a row. starts: (requests,) position of each request's first token.

    num_outputs: (requests,) tokens that each request emits, where the table says so; None: as many as the workload wants.
    The rows of a table that requests share are long enough that no request reads past the end.
    """

    runs: Ints
    starts: Ints
    num_outputs: Ints | None = None

    def emitted(self, draft_length: int) -> Ints:
        """(positions,) tokens that a draft of this length gives there: the accepted ones and the target's own."""
        known = self._emitted.get(draft_length)
        if known is None:
            known = self._emitted[draft_length] = np.minimum(self.runs, draft_length) + 1
        return known

    @cached_property
    def _emitted(self) -> dict[int, Ints]:
        """By draft length, as far as they have been asked for."""
        return {}


def drawn_runs(
    conditional_acceptance: Sequence[float], num_requests: int, max_output_tokens: int, rng: np.random.Generator
) -> RunLengths:
    """Runs of independent rounds with measured acceptance by position.

    conditional_acceptance: chance that draft token j = 0, 1, ... is accepted, given that the ones before it were; the last one
    holds from there on. Of engines' marginal rates these are the ratios of neighbours. Rounds are independent of each
    other and alike for all requests: what a server's counters tell. Raises ValueError where a chance is not one.

    >>> int(drawn_runs([1.0], 1, 10, np.random.default_rng(0)).runs[0]) == LONGEST_RUN
    True
    """
    chances = np.asarray(conditional_acceptance, float)
    if chances.ndim != 1 or not len(chances) or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError(f"acceptance by position must be chances in [0, 1], but got {list(conditional_acceptance)}.")
    by_depth = np.concatenate([chances, np.full(LONGEST_RUN, chances[-1])])[:LONGEST_RUN]
    survival = np.cumprod(by_depth)  # (depth,) of at least so many accepted, falling
    uniform = rng.random(NUM_POSITIONS + max_output_tokens)
    runs = np.searchsorted(-survival, -uniform, side="left").astype(np.int64)
    starts = rng.integers(0, NUM_POSITIONS, num_requests)
    return RunLengths(runs, starts)


def recorded_runs(traces: Sequence[RequestTrace], num_requests: int, max_output_tokens: int = 0) -> RunLengths:
    """Runs of recorded requests, which are served in turn: request i is trace i modulo their number.

    max_output_tokens: 0: each request emits what its trace holds. Otherwise as many as the workload wants, at most this; an
    output longer than its trace goes on in the next trace.
    """
    lengths = [trace.num_tokens for trace in traces]
    firsts = np.cumsum([0, *lengths[:-1]])
    pieces = [np.array(next_mismatches(trace.ranks)[:-1]) - np.arange(trace.num_tokens) for trace in traces]
    runs = np.concatenate(pieces).astype(np.int64)
    which = np.arange(num_requests) % len(traces)
    if not max_output_tokens:
        return RunLengths(runs, firsts[which], np.array(lengths)[which])
    return RunLengths(np.resize(runs, len(runs) + max_output_tokens), firsts[which])

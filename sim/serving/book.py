"""What happened to every request and every device of a run: plain arrays and sums, whatever the number of requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GAPS_A_DECADE = 200  # bins of the histogram of gaps: a bin is 1.2% wide
_LEAST_GAP_S, _NUM_DECADES = 1e-7, 11


class Gaps:
    """Gaps between deliveries, as a histogram over their logarithm: percentiles within 0.6%, in memory that does not grow."""

    def __init__(self) -> None:
        self._counts = [0] * (GAPS_A_DECADE * _NUM_DECADES)
        self._scale = GAPS_A_DECADE / math.log(10)

    def add(self, gap_s: float, count: int) -> None:
        """So many gaps of this length."""
        place = int(math.log(gap_s / _LEAST_GAP_S) * self._scale) if gap_s > _LEAST_GAP_S else 0
        self._counts[min(place, len(self._counts) - 1)] += count

    @property
    def num_gaps(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def quantile_s(self, share: float) -> float:
        """The middle of the bin that holds this share of the gaps; NaN without any."""
        reached = np.cumsum(self._counts)
        if not reached[-1]:
            return math.nan
        place = int(np.searchsorted(reached, share * reached[-1]))
        return _LEAST_GAP_S * float(np.exp((place + 0.5) / self._scale))


@dataclass(slots=True)
class ReplicaTotals:
    """Sums over the steps of a replica.

    num_steps: with running requests. num_request_steps: running requests, summed over these. num_pending, num_emitted: draft
    tokens verified and tokens given by rounds; first tokens that came with a prompt are in num_first.
    target_busy_s, draft_busy_s: at work. busy_s: some request was in the replica. kv_token_s: tokens in the memory, over time.
    """

    num_steps: int = 0
    num_request_steps: int = 0
    num_pending: int = 0
    num_emitted: int = 0
    num_first: int = 0
    num_prompt_tokens: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    target_busy_s: float = 0.0
    draft_busy_s: float = 0.0
    busy_s: float = 0.0
    kv_token_s: float = 0.0
    max_kv_tokens: int = 0
    max_running: int = 0


@dataclass(eq=False)
class Book:
    """One entry a request: when it was sent, got its first and its last token, in seconds; NaN as long as it has not.

    num_output: (requests,) tokens emitted. in_system_s: sum over time of the requests in the system, counted as they come
    and go: by Little's law the sum of their times in the system.
    on_finish: called with each request that has got its last token.
    """

    env: simpy.Environment
    num_requests: int
    on_finish: Callable[[int], None] | None = None
    gaps: Gaps = field(default_factory=Gaps)

    def __post_init__(self) -> None:
        self.sent_s: Floats = np.full(self.num_requests, np.nan)
        self.first_s: Floats = np.full(self.num_requests, np.nan)
        self.last_s: Floats = np.full(self.num_requests, np.nan)
        self.num_output = np.zeros(self.num_requests, dtype=np.int64)
        self.num_in_system = self.num_finished = 0
        self.max_in_system = 0
        self.in_system_s = 0.0
        self._changed_s = 0.0

    def send(self, request: int) -> None:
        """A request leaves its client now."""
        self._count(1)
        self.sent_s[request] = self.env.now

    def first_token(self, request: int) -> None:
        """It gets its first token now."""
        self.first_s[request] = self.env.now

    def finish(self, request: int, num_output: int) -> None:
        """It gets its last token now."""
        self._count(-1)
        self.last_s[request] = self.env.now
        self.num_output[request] = num_output
        self.num_finished += 1
        if self.on_finish is not None:
            self.on_finish(request)

    def _count(self, change: int) -> None:
        now = self.env.now
        self.in_system_s += self.num_in_system * (now - self._changed_s)
        self._changed_s = now
        self.num_in_system += change
        if self.num_in_system > self.max_in_system:
            self.max_in_system = self.num_in_system

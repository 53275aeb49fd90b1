"""Who else used the cores: a measurement under contention is marked, never claimed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Contention:
    """Load by others over a span of time. other_share: cores that other processes kept busy (1.0 = one whole core),
    time stolen by the hypervisor included."""

    other_share: float
    span_s: float

    @property
    def is_clean(self) -> bool:
        """Whether a timing over this span may be believed."""
        return self.other_share <= 0.10


class ContentionMeter:
    """Measures the load of everything but the given processes between two calls of `lap`."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in dict.fromkeys([os.getpid(), *pids])]
        self.lap()

    def lap(self) -> Contention:
        """Contention since the last lap. The system counts in hundredths of a second: laps below 0.3 s are coarse."""
        now = time.perf_counter()
        total = psutil.cpu_times()
        busy = total.user + total.system + getattr(total, "steal", 0.0) + getattr(total, "nice", 0.0)
        own = 0.0
        for process in self._processes:
            try:
                times = process.cpu_times()
                own += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        last = getattr(self, "_last", (now, busy, own))
        self._last = (now, busy, own)
        span = max(now - last[0], 1e-9)
        other = max(0.0, (busy - last[1]) - (own - last[2])) / span
        return Contention(other, span)

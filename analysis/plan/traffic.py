"""The traffic to plan for: a file, or a rate with laws of arrivals and lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim.serving.workload.arrivals import GammaArrivals
from sim.serving.workload.draw import draw_workload
from sim.serving.workload.lengths import LognormalLengths
from traces.workload import Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnTraffic:
    """Requests drawn from laws: as many as wanted, and at any rate the same ones."""

    arrivals: GammaArrivals
    lengths: LognormalLengths

    @property
    def source(self) -> str:
        """One line for people."""
        lengths = self.lengths
        return (
            f"{self.rate:g} requests a second, {lengths.mean_prompt_tokens:g} tokens in and "
            f"{lengths.mean_output_tokens:g} out in the mean"
        )

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.arrivals.arrivals_per_s

    @property
    def mean_output_tokens(self) -> float:
        """Of a request."""
        return self.lengths.mean_output_tokens

    def sample(self, num_requests: int, seed: int, *, rate_factor: float = 1.0) -> Workload:
        """So many requests, arriving rate_factor times as fast. Equal seeds give the same ones at any rate."""
        arrivals = replace(self.arrivals, arrivals_per_s=self.rate * rate_factor)
        return draw_workload(arrivals, self.lengths, num_requests=num_requests, rng=np.random.default_rng(seed))

    def busiest(self, num_requests: int, seed: int) -> Workload:
        """So many requests; laws have no busier hours."""
        return self.sample(num_requests, seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedTraffic:
    """Requests of a file. source: one line for people."""

    workload: Workload
    source: str

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.workload.arrivals_per_s

    @property
    def mean_output_tokens(self) -> float:
        """Of a request."""
        return float(self.workload.output_tokens.mean())

    def sample(self, num_requests: int, seed: int, *, rate_factor: float = 1.0) -> Workload:
        """A stretch of so many requests that follow one another, arriving rate_factor times as fast.

        Seeds 0, 1, ... give stretches that follow one another, and begin again at the end; all requests if there are fewer.
        """
        num_requests = min(num_requests, self.workload.num_requests)
        start = seed % (self.workload.num_requests // num_requests) * num_requests
        return self._from(start, num_requests).scaled(rate_factor)

    def busiest(self, num_requests: int, seed: int) -> Workload:
        """The densest stretch of so many requests that follow one another."""
        num_requests = min(num_requests, self.workload.num_requests)
        arrival_s = self.workload.arrival_s
        spans = arrival_s[num_requests - 1 :] - arrival_s[: len(arrival_s) - num_requests + 1]
        return self._from(int(np.argmin(spans)), num_requests)

    def _from(self, start: int, num_requests: int) -> Workload:
        """So many requests from this one on, whose arrival is the new 0."""
        stop, blocks = start + num_requests, self.workload.prefix_blocks
        arrival_s = self.workload.arrival_s[start:stop]
        return replace(
            self.workload,
            arrival_s=arrival_s - arrival_s[0],
            prompt_tokens=self.workload.prompt_tokens[start:stop],
            output_tokens=self.workload.output_tokens[start:stop],
            prefix_blocks=None if blocks is None else blocks[start:stop],
        )


Traffic = DrawnTraffic | RecordedTraffic


def read_recorded(path: Path, request_rate: float | None = None) -> RecordedTraffic:
    """Requests of a file in any known format. request_rate: brought to this rate, by scaling all arrivals.

    Raises ValueError for what cannot be read, and for a rate that is not above 0.
    """
    from traces.importers.traffic.catalog import read_traffic

    workload = read_traffic(path)
    if request_rate is not None:
        if not 0 < request_rate < float("inf"):
            raise ValueError(f"the request rate must be more than 0 a second, but got {request_rate}.")
        workload = workload.scaled(request_rate / workload.arrivals_per_s)
    return RecordedTraffic(workload=workload, source=f"{path.name}, {workload.arrivals_per_s:.3g} requests a second")

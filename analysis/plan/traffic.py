"""The traffic to plan for: a file, or a rate with lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.workload import Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """Requests that come whatever the server does.

    workload: a recorded hour, or None. Without one: request_rate a second with gaps from a Gamma law whose shape is
    burstiness (1: Poisson; less: burstier), and lengths from log-normal laws with these means and a coefficient of
    variation of length_cv; 0 makes them constant.
    """

    workload: Workload | None = None
    request_rate: float = 0.0
    burstiness: float = 1.0
    prompt_tokens: float = 512.0
    output_tokens: float = 256.0
    length_cv: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if self.workload is not None:
            return
        for name in ("request_rate", "burstiness"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be more than 0, but got {getattr(self, name)}.")
        for name in ("prompt_tokens", "output_tokens"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}.")
        if not 0 <= self.length_cv < float("inf"):
            raise ValueError(f"length_cv must be at least 0, but got {self.length_cv}.")

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.request_rate if self.workload is None else self.workload.arrivals_per_s

    @property
    def num_requests(self) -> int | None:
        """Of a recorded traffic; None where as many as wanted can be made."""
        return None if self.workload is None else self.workload.num_requests

    def sample(self, num_requests: int, seed: int, *, rate_factor: float = 1.0) -> Workload:
        """A stretch of so many requests, arriving rate_factor times as fast. Equal seeds give the same one at any rate.

        Of a recorded traffic, the stretches of seeds 0, 1, ... follow one another, and begin again at its end.
        """
        if self.workload is not None:
            stretch = _stretch(self.workload, num_requests, seed)
            return stretch.scaled(rate_factor)
        arrivals, lengths = np.random.default_rng(seed).spawn(2)
        gaps = arrivals.gamma(self.burstiness, 1 / (self.burstiness * self.request_rate * rate_factor), num_requests)
        prompts, outputs = lengths.spawn(2)
        return Workload(
            arrival_s=np.cumsum(gaps),
            prompt_tokens=_lengths(self.prompt_tokens, self.length_cv, num_requests, prompts),
            output_tokens=_lengths(self.output_tokens, self.length_cv, num_requests, outputs),
            source=self.source,
        )

    def busiest(self, num_requests: int, seed: int) -> Workload:
        """The densest stretch of so many requests that follow one another, of a recorded traffic; otherwise a sample."""
        if self.workload is None or num_requests >= self.workload.num_requests:
            return self.sample(num_requests, seed)
        arrival_s = self.workload.arrival_s
        spans = arrival_s[num_requests - 1 :] - arrival_s[: len(arrival_s) - num_requests + 1]
        return _from(self.workload, int(np.argmin(spans)), num_requests)


def _stretch(workload: Workload, num_requests: int, seed: int) -> Workload:
    total = workload.num_requests
    if num_requests >= total:
        return workload
    num_stretches = total // num_requests
    return _from(workload, (seed % num_stretches) * num_requests, num_requests)


def _from(workload: Workload, start: int, num_requests: int) -> Workload:
    """So many requests from one on, whose arrival is the new 0."""
    arrival_s = workload.arrival_s[start : start + num_requests]
    return Workload(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=workload.prompt_tokens[start : start + num_requests],
        output_tokens=workload.output_tokens[start : start + num_requests],
        source=workload.source,
    )


def _lengths(mean: float, cv: float, count: int, rng: np.random.Generator) -> np.ndarray:
    if not cv:
        return np.full(count, round(mean), dtype=np.int64)
    variance = np.log1p(cv**2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def traffic_of(
    path: Path | None,
    *,
    request_rate: float | None,
    burstiness: float,
    prompt_tokens: float,
    output_tokens: float,
    length_cv: float,
) -> Traffic:
    """From a file, whose rate may be changed, or from a rate. Raises ValueError where neither is given."""
    if path is None:
        if request_rate is None:
            raise ValueError("no traffic to plan for; give --traffic FILE, or --request-rate with lengths.")
        return Traffic(
            request_rate=request_rate,
            burstiness=burstiness,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            length_cv=length_cv,
            source=f"{request_rate:g} requests a second, {prompt_tokens:g} tokens in, {output_tokens:g} out",
        )
    from traces.importers.traffic.catalog import read_traffic

    workload = read_traffic(path)
    if request_rate is not None:
        if not 0 < request_rate < float("inf"):
            raise ValueError(f"request_rate must be more than 0, but got {request_rate}.")
        workload = workload.scaled(request_rate / workload.arrivals_per_s)
    return Traffic(workload=workload, source=f"{path.name}, {workload.arrivals_per_s:.3g} requests a second")

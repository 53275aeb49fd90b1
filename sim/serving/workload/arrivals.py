"""Laws of when requests are ready to be sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from traces.workload import Floats


class Arrivals(Protocol):
    """When requests are ready to be sent. Its repr says all of it, for people."""

    @property
    def max_concurrency(self) -> int | None:
        """As in `Workload`."""
        ...

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """(num_requests,) seconds from the start, never falling."""
        ...


class _OpenLoop:
    """Requests come whatever the server does, so that nothing bounds how many are in it."""

    @property
    def max_concurrency(self) -> None:
        return None


@dataclass(frozen=True)
class GammaArrivals(_OpenLoop):
    """Gaps are Gamma with mean 1 / arrivals_per_s and shape `burstiness`, as `vllm bench serve --burstiness` defines it.

    burstiness: 1 is Poisson, less is burstier, infinity is constant gaps. The coefficient of variation of the gaps, by which
    ServeGen names burstiness, is burstiness ** -0.5 (`with_cv`). The first request arrives after a gap of its own.
    """

    arrivals_per_s: float
    burstiness: float

    def __post_init__(self) -> None:
        _check_above_0(arrivals_per_s=self.arrivals_per_s)
        _check_above_0(burstiness=self.burstiness, may_be_infinite=True)

    @classmethod
    def with_cv(cls, arrivals_per_s: float, gap_cv: float) -> Self:
        """gap_cv: coefficient of variation of the gaps, at least 0."""
        if not 0 <= gap_cv < math.inf:
            raise ValueError(f"gap_cv must be a number of at least 0, but got {gap_cv}.")
        return cls(arrivals_per_s, gap_cv**-2 if gap_cv else math.inf)

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        return np.cumsum(_gamma_gaps(num_requests, self.arrivals_per_s, self.burstiness, rng))


@dataclass(frozen=True)
class PoissonArrivals(_OpenLoop):
    """Gaps are exponential: requests do not know of each other."""

    arrivals_per_s: float

    def __post_init__(self) -> None:
        _check_above_0(arrivals_per_s=self.arrivals_per_s)

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        return np.cumsum(rng.standard_exponential(num_requests) / self.arrivals_per_s)


@dataclass(frozen=True)
class WeibullArrivals(_OpenLoop):
    """Gaps are Weibull with mean 1 / arrivals_per_s; a shape of 1 is Poisson, less is burstier.

    Their coefficient of variation is sqrt(G(1 + 2 / shape) / G(1 + 1 / shape) ** 2 - 1), with G the gamma function.
    """

    arrivals_per_s: float
    shape: float

    def __post_init__(self) -> None:
        _check_above_0(arrivals_per_s=self.arrivals_per_s, shape=self.shape)

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        scale_s = 1 / (self.arrivals_per_s * math.gamma(1 + 1 / self.shape))
        return np.cumsum(scale_s * rng.weibull(self.shape, num_requests))


@dataclass(frozen=True)
class ConstantArrivals(_OpenLoop):
    """A request every 1 / arrivals_per_s seconds, the first after one such gap."""

    arrivals_per_s: float

    def __post_init__(self) -> None:
        _check_above_0(arrivals_per_s=self.arrivals_per_s)

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        return np.arange(1, num_requests + 1) / self.arrivals_per_s


@dataclass(frozen=True)
class ClosedLoop:
    """num_users users, each of whom sends the next request the moment the last one is answered: no time to think.

    All requests are ready at 0, and num_users at once are in the server.
    """

    num_users: int

    def __post_init__(self) -> None:
        if self.num_users < 1:
            raise ValueError(f"num_users must be at least 1, but got {self.num_users}.")

    @property
    def max_concurrency(self) -> int:
        return self.num_users

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        return np.zeros(num_requests)


@dataclass(frozen=True, kw_only=True)
class BenchServe:
    """A finite run as `vllm bench serve` makes it (vllm/benchmarks/serve.py at commit 009e6d4, get_request).

    Gaps are Gamma of shape `burstiness` and mean 1 / request_rate, one for each request, the first one too: it is sent after
    its gap, not at 0. Then all times are stretched by one factor, so that the last request is ready at exactly
    num_requests / request_rate seconds. With an infinite rate all are ready at 0; with infinite burstiness gaps are equal.
    At most max_concurrency requests are in the server at once. A request that waits behind the semaphore has not been sent, so
    TTFT does not count that wait; the duration of the run, from 0 to the last answer, does. There is no ramp-up of the rate.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        _check_above_0(request_rate=self.request_rate, burstiness=self.burstiness, may_be_infinite=True)
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(
                f"max_concurrency must be at least 1, or None for no bound, but got {self.max_concurrency}."
            )

    def draw_s(self, num_requests: int, rng: np.random.Generator) -> Floats:
        if math.isinf(self.request_rate):
            return np.zeros(num_requests)
        arrival_s = np.cumsum(_gamma_gaps(num_requests, self.request_rate, self.burstiness, rng))
        duration_s = num_requests / self.request_rate
        if arrival_s[-1] > 0:  # very small shapes round every gap to 0
            arrival_s *= duration_s / arrival_s[-1]
            arrival_s[-1] = duration_s
        return np.minimum(arrival_s, duration_s)


def _gamma_gaps(num_gaps: int, arrivals_per_s: float, shape: float, rng: np.random.Generator) -> Floats:
    """(num_gaps,) seconds."""
    if math.isinf(shape):
        return np.full(num_gaps, 1 / arrivals_per_s)
    return rng.standard_gamma(shape, num_gaps) / (arrivals_per_s * shape)


def _check_above_0(*, may_be_infinite: bool = False, **values: float) -> None:
    for name, value in values.items():
        if not value > 0 or (math.isinf(value) and not may_be_infinite):
            raise ValueError(f"{name} must be a number above 0{' or infinite' * may_be_infinite}, but got {value}.")

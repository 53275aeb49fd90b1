"""Requests drawn from laws of arrivals and lengths.

    rng = np.random.default_rng(0)
    draw_workload(PoissonArrivals(4.0), ConstantLengths(prompt_tokens=145, output_tokens=200), num_requests=1000, rng=rng)

Arrivals, prompt lengths and output lengths come from streams of their own (`rng.spawn`): changing one law leaves the others'
draws as they were. All laws but `BenchServe` draw one request after the other, so that fewer requests are the first of more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sim.serving.workload.arrivals import Arrivals
from sim.serving.workload.lengths import LengthLaw
from sim.serving.workload.windows import client_arrivals
from traces.importers.traffic.servegen import ArrivalWindows
from traces.workload import Workload


def draw_workload(arrivals: Arrivals, lengths: LengthLaw, *, num_requests: int, rng: np.random.Generator) -> Workload:
    """num_requests requests, at least 1. The same generator in the same state gives the same workload."""
    if num_requests < 1:
        raise ValueError(f"num_requests must be at least 1, but got {num_requests}.")
    arrival_rng, length_rng = rng.spawn(2)
    drawn = lengths.draw(num_requests, length_rng)
    return Workload(
        arrival_s=arrivals.draw_s(num_requests, arrival_rng),
        prompt_tokens=drawn.prompt_tokens,
        output_tokens=drawn.output_tokens,
        max_concurrency=arrivals.max_concurrency,
        source=f"{num_requests} requests, {arrivals}, {lengths}",
    )


def draw_windows(
    clients: Sequence[ArrivalWindows],
    lengths: LengthLaw,
    *,
    from_s: float = 0.0,
    to_s: float = math.inf,
    rng: np.random.Generator,
) -> Workload:
    """The requests of ServeGen's clients in [from_s, to_s), which starts at 0; each client has a stream of its own.

    Within a window, arrivals are a stationary renewal process: gaps follow the window's family and shape, with the mean that
    its rate asks for, and the first request comes as late as it would for somebody who begins to look at a random moment. So
    a window brings rate x duration requests in the mean, however bursty it is; if each window began as if a request had just
    arrived, bursty ones would bring more. Windows are independent. (ServeGen, arXiv:2505.09999; the fitted scale is not
    used, see `ArrivalWindows`.)

    Raises ValueError where there is no client, no window or no request.
    """
    if not clients or not 0 <= from_s < to_s:
        raise ValueError(
            "there must be at least one client, and 0 <= from_s < to_s, but got "
            f"{len(clients)} clients, from_s = {from_s} and to_s = {to_s}."
        )
    arrival_rng, length_rng = rng.spawn(2)
    arrival_s = np.sort(
        np.concatenate(
            [
                client_arrivals(client, from_s, to_s, client_rng)
                for client, client_rng in zip(clients, arrival_rng.spawn(len(clients)), strict=True)
            ]
        )
    )
    if not len(arrival_s):
        raise ValueError(f"no request arrives from {from_s} s to before {to_s} s; take a longer time, or more clients.")
    drawn = lengths.draw(len(arrival_s), length_rng)
    return Workload(
        arrival_s=arrival_s - from_s,
        prompt_tokens=drawn.prompt_tokens,
        output_tokens=drawn.output_tokens,
        source=f"{'; '.join(client.source for client in clients)}; from {from_s:g} s to {to_s:g} s; {lengths}",
    )

"""Arrivals whose rate and burstiness change from window to window, as ServeGen describes a client's."""

from __future__ import annotations

import math

import numpy as np

from traces.importers.traffic.servegen import ArrivalWindows, GapFamily
from traces.workload import Floats


def client_arrivals(client: ArrivalWindows, from_s: float, to_s: float, rng: np.random.Generator) -> Floats:
    """(num_requests,) seconds on the client's clock, never falling.

    Each window has a stream of its own, is drawn whole and then cut: a part of the time has the requests that the whole has.
    """
    parts = [np.empty(0)]
    window_rngs = rng.spawn(len(client.start_s))
    for place in np.flatnonzero((client.start_s + client.window_s > from_s) & (client.start_s < to_s)):
        family = client.family[place]
        if family is not None:
            shape, arrivals_per_s = float(client.shape[place]), float(client.arrivals_per_s[place])
            offset_s = _stationary_arrivals(family, shape, arrivals_per_s, client.window_s, window_rngs[place])
            parts.append(client.start_s[place] + offset_s)
    arrival_s = np.concatenate(parts)
    return arrival_s[(arrival_s >= from_s) & (arrival_s < to_s)]


def _stationary_arrivals(
    family: GapFamily, shape: float, arrivals_per_s: float, duration_s: float, rng: np.random.Generator
) -> Floats:
    """Arrivals in [0, duration_s) of a renewal process that has always been running.

    A random moment falls into a gap with a chance that grows with the gap's length, and uniformly within it: the first wait
    is a uniform share of a length-biased gap. If gaps are Gamma(k), that gap is Gamma(k + 1); if they are Weibull(k), it is
    a Gamma(1 + 1 / k) variable to the power 1 / k.
    """
    if family is GapFamily.GAMMA:
        scale_s = 1 / (arrivals_per_s * shape)
        spanning_s = scale_s * rng.standard_gamma(shape + 1)
    else:
        scale_s = 1 / (arrivals_per_s * math.gamma(1 + 1 / shape))
        spanning_s = scale_s * rng.standard_gamma(1 + 1 / shape) ** (1 / shape)
    now_s = rng.random() * spanning_s
    parts = [np.array([now_s])]
    num_gaps = max(16, int(1.2 * arrivals_per_s * duration_s))
    while now_s < duration_s:
        drawn = rng.standard_gamma(shape, num_gaps) if family is GapFamily.GAMMA else rng.weibull(shape, num_gaps)
        part = now_s + np.cumsum(scale_s * drawn)
        now_s = float(part[-1])
        parts.append(part)
    arrival_s = np.concatenate(parts)
    return arrival_s[arrival_s < duration_s]

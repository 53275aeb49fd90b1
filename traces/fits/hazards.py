"""Hazards: the chance of acceptance of each draft token, from all that the draft tells of it, as one calibrated signal.

A logistic curve over the three recorded scalars (noisy margin, logarithm of the largest probability, entropy) and their
squares, fitted by maximum likelihood with a slight ridge. `with_hazards` writes its logit in the place of the margin, so that
a policy with guess_by=margin, intercept 0 and slope 1 (or a threshold on the margin) steers by predicted acceptance. What
follows is exact in replay, for the curve is a function of each token's own signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from traces.schema import RequestTrace, Signal

Floats = NDArray[np.float64]
MAX_MARGIN = 25.0  # an infinite one, where a filter leaves one token, is as sure as this


@dataclass(frozen=True)
class Hazards:
    """centre, scale: (inputs,) of the features. weights: (1 + inputs,), the constant first. log_loss, base_log_loss: nats a
    token on what it was fitted to, and of the constant rate there."""

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    log_loss: float
    base_log_loss: float

    def logits(self, signals: Sequence[Signal]) -> Floats:
        """(signals,) logit of predicted acceptance."""
        inputs = (_features(signals) - np.array(self.centre)) / np.array(self.scale)
        found: Floats = self.weights[0] + inputs @ np.array(self.weights[1:])
        return found


def fit_hazards(traces: Sequence[RequestTrace]) -> Hazards:
    """Fit to all positions of recorded requests of one temperature. Raises ValueError without signals, and where every draft
    token was accepted or none."""
    signals = [signal for trace in traces for signal in trace.signals]
    if not signals:
        raise ValueError("the traces hold no signals; record them with alignment on.")
    right = np.array([rank == 0 for trace in traces for rank in trace.ranks])
    if right.all() or not right.any():
        raise ValueError("every draft token was accepted, or none: there is no curve to fit.")
    features = _features(signals)
    centre, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    inputs = np.c_[np.ones(len(features)), (features - centre) / scale]

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = inputs @ weights
        chance = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        value = np.logaddexp(0, np.where(right, -logits, logits)).mean() + 1e-4 * (weights[1:] ** 2).sum()
        slope = inputs.T @ (chance - right) / len(right)
        slope[1:] += 2e-4 * weights[1:]
        return float(value), slope

    best = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    rate, logits = right.mean(), inputs @ best
    return Hazards(
        centre=tuple(centre.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(best.tolist()),
        log_loss=float(np.logaddexp(0, np.where(right, -logits, logits)).mean()),
        base_log_loss=float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))),
    )


def with_hazards(trace: RequestTrace, hazards: Hazards) -> RequestTrace:
    """The request with the logit of predicted acceptance as its margins, on the path and in the tails."""

    def told(signals: Sequence[Signal]) -> tuple[Signal, ...]:
        if not signals:
            return ()
        logits = hazards.logits(signals).tolist()
        return tuple(signal._replace(margin=logit) for signal, logit in zip(signals, logits, strict=True))

    return replace(trace, signals=told(trace.signals), tails={start: told(tail) for start, tail in trace.tails.items()})


def _features(signals: Sequence[Signal]) -> Floats:
    """(signals, 6)."""
    rows = np.array(signals, dtype=float).reshape(-1, 3)
    sure = np.log(np.clip(rows[:, 0], 1e-9, 1.0))
    scalars = np.c_[np.clip(rows[:, 2], -MAX_MARGIN, MAX_MARGIN), sure, rows[:, 1]]
    features: Floats = np.c_[scalars, scalars**2]
    return features

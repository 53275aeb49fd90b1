"""From signals to probabilities of acceptance: logistic curves and rank laws fitted to alignment traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from traces.schema import RequestTrace

MAX_RANK = 16  # larger ranks are beyond what a policy can hedge


@dataclass(frozen=True)
class SignalFit:
    """Acceptance = 1 / (1 + exp(-(intercept + slope x))) for a signal x, at one temperature.

    auc: chance that an accepted token's signal exceeds a rejected one's. log_loss in nats a token; base_log_loss is that of
    the constant acceptance rate.
    """

    signal: str
    temperature: float
    intercept: float
    slope: float
    acceptance: float
    auc: float
    log_loss: float
    base_log_loss: float
    num_positions: int


@dataclass(frozen=True)
class RankFit:
    """Law of the rank r >= 1 of the target's token after a rejection: (1 - tail)(1 - decay) decay^(r - 1), and a mass
    `tail` beyond the ranks that can be hedged."""

    decay: float
    tail: float
    num_rejections: int


def fit_signal(traces: Sequence[RequestTrace], signal: str = "margin") -> SignalFit:
    """Fit one signal (`max_prob`, `negative_entropy` or `margin`) by maximum likelihood; traces of one temperature.

    Raises ValueError without signals, and where acceptance never varies.
    """
    values, accepted = signal_and_acceptance(traces, signal)
    if accepted.all() or not accepted.any():
        raise ValueError("every draft token was accepted, or none: there is no curve to fit.")
    # A slight ridge keeps the curve finite when the signal separates the two perfectly.
    centre, scale = float(values.mean()), float(values.std())
    if scale <= 1e-9 * max(1.0, abs(centre)):  # one value everywhere, which tells nothing: the curve is flat
        values, centre, scale = np.zeros_like(values), 0.0, 1.0
    inputs = (values - centre) / scale

    def loss(parameters: NDArray[np.float64]) -> float:
        logits = parameters[0] + parameters[1] * inputs
        return float(np.logaddexp(0, np.where(accepted, -logits, logits)).mean() + 1e-6 * (parameters**2).sum())

    best = minimize(loss, np.array([0.0, 1.0]), method="BFGS").x
    rate = float(accepted.mean())
    logits = best[0] + best[1] * inputs
    return SignalFit(
        signal=signal,
        temperature=traces[0].temperature,
        intercept=float(best[0] - best[1] * centre / scale),
        slope=float(best[1] / scale),
        acceptance=rate,
        auc=area_under_curve(values, accepted),
        log_loss=float(np.logaddexp(0, np.where(accepted, -logits, logits)).mean()),
        base_log_loss=float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))),
        num_positions=len(values),
    )


def fit_ranks(traces: Sequence[RequestTrace]) -> RankFit:
    """Fit the rank law after a rejection: the tail is the share of ranks above MAX_RANK, the decay the maximum likelihood.

    Raises ValueError where no token was rejected, and where the ranks of rejected tokens are unknown.
    """
    if any(trace.known_ranks is not None for trace in traces):
        raise ValueError("the traces say only that tokens were rejected, not their ranks: there is no rank law to fit.")
    ranks = np.concatenate([np.asarray(trace.ranks) for trace in traces])
    rejected = ranks[ranks > 0]
    if not len(rejected):
        raise ValueError("no draft token was rejected: there is no rank law to fit.")
    near = rejected[rejected <= MAX_RANK]
    return RankFit(
        decay=float(1 - 1 / near.mean()) if len(near) else 0.0,
        tail=float((rejected > MAX_RANK).mean()),
        num_rejections=len(rejected),
    )


def signal_and_acceptance(traces: Sequence[RequestTrace], signal: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(positions,) values of a signal, larger meaning surer, and whether the draft's token was accepted there.

    signal: max_prob, negative_entropy or margin. Raises ValueError for any other, and for traces without signals.
    """
    if signal not in ("max_prob", "negative_entropy", "margin"):
        raise ValueError(f"unknown signal {signal!r}; known are max_prob, negative_entropy and margin.")
    sign, name = (-1.0, "entropy") if signal == "negative_entropy" else (1.0, signal)
    values = np.array([getattr(entry, name) for trace in traces for entry in trace.signals])
    if not len(values):
        raise ValueError("the traces hold no signals; record them with alignment on.")
    accepted = np.array([rank == 0 for trace in traces for rank in trace.ranks])
    return sign * values, accepted


def area_under_curve(values: NDArray[np.float64], accepted: NDArray[np.bool_]) -> float:
    """Chance that an accepted token's value exceeds a rejected one's, ties counting half; NaN when one kind is missing.

    >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    num_accepted = int(accepted.sum())
    num_rejected = len(accepted) - num_accepted
    if not num_accepted or not num_rejected:
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[accepted].sum() - num_accepted * (num_accepted + 1) / 2) / (num_accepted * num_rejected))

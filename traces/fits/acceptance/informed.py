"""Acceptance that is partly known beforehand: what the draft's confidence shows, and what only the target could tell.

The chance that a draft token is accepted has the logit

    mean + confidence_sd u + hidden_sd v

u is what the draft's confidence shows, v what it does not. Both are standard normal and drift along a request: neighbouring
positions are correlated with `persistence`, so that easy and hard stretches alternate (clustering in time). With both
spreads 0 it is the textbook's constant acceptance.

    law = fit_informed(traces)      # from outcomes along requests, and from how much the recorded signals tell of them
    law.round_law(8)                # tokens a round at a draft length
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.signal import lfilter
from scipy.special import expit, factorial

from traces.fits.acceptance.chain import RoundLaw
from traces.fits.signals import fit_signal, signal_and_acceptance
from traces.schema import RequestTrace

Floats = NDArray[np.float64]
MAX_LAG = 12  # positions apart at which outcomes are compared
MAX_SD, MAX_PERSISTENCE = 6.0, 0.98  # a logit that hardly moves is an effect of the request
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_ORDERS = np.arange(13)
# Normalised Hermite polynomials at the nodes, (orders, nodes): a function's covariance at correlation r is the sum of
# r^order times its squared coefficients.
_POLYNOMIALS = np.polynomial.hermite_e.hermevander(_NODES, _ORDERS[-1]).T / np.sqrt(factorial(_ORDERS))[:, None]
_GRID = np.linspace(-3.6, 3.6, 27)  # of the drift, as a Markov chain


class Positions(NamedTuple):
    """Requests drawn from a law, each (requests, tokens). is_right: whether the draft's token is the target's. seen: the u
    behind its chance."""

    is_right: NDArray[np.bool_]
    seen: Floats


@dataclass(frozen=True, kw_only=True)
class InformedLaw:
    """mean: logit of acceptance where u = v = 0. confidence_sd, hidden_sd: spreads of the logit that the draft's confidence
    shows and does not show. persistence: correlation of neighbouring positions, of u and of v, in [0, 1)."""

    mean: float
    confidence_sd: float
    hidden_sd: float = 0.0
    persistence: float = 0.0
    name: str = "informed"

    def __post_init__(self) -> None:
        if not (self.confidence_sd >= 0 and self.hidden_sd >= 0):
            raise ValueError(f"confidence_sd and hidden_sd must be at least 0, but got {self}.")
        if not 0 <= self.persistence < 1:
            raise ValueError(f"persistence must lie in [0, 1), but got {self.persistence}; it is a correlation.")

    @property
    def total_sd(self) -> float:
        """Spread of the logit, seen and hidden together."""
        return float(np.hypot(self.confidence_sd, self.hidden_sd))

    def confidence(self, seen: Floats) -> Floats:
        """Chance of acceptance given u alone: what a calibrated draft reports as its confidence. Shape of `seen`."""
        if not self.hidden_sd:
            exact: Floats = expit(self.mean + self.confidence_sd * seen)
            return exact
        logits = self.mean + self.confidence_sd * seen[..., None] + self.hidden_sd * _NODES
        chance: Floats = expit(logits) @ _WEIGHTS
        return chance

    @property
    def acceptance(self) -> float:
        """Share of positions at which the draft's token is right."""
        return float(expit(self.mean + self.total_sd * _NODES) @ _WEIGHTS)

    def round_law(self, draft_length: int) -> RoundLaw:
        """Rounds of a fixed draft length in the long run. u and v drift alike, so that the logit alone is a Markov chain;
        it is followed on a grid."""
        right = expit(self.mean + self.total_sd * _GRID)
        step, start = _transitions(self.persistence)
        go_on = right[:, None] * step  # accepted, and then the next position
        reach = [np.eye(len(_GRID))]
        for _ in range(draft_length):
            reach.append(reach[-1] @ go_on)
        # A round ends with the target's own token: after the first rejection, or after all drafted tokens.
        ends = sum((before @ ((1 - right)[:, None] * step) for before in reach[:-1]), start=reach[-1] @ step)
        for _ in range(100):
            start = start @ ends
            start = start / start.sum()
        accepted = np.array([float((start @ before).sum()) for before in reach])
        conditional = accepted[1:] / np.maximum(accepted[:-1], 1e-300)
        return RoundLaw(
            draft_length=draft_length, tokens_per_forward=float(accepted.sum()), conditional=tuple(conditional.tolist())
        )

    def sample_many(self, num_requests: int, num_tokens: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(num_requests, num_tokens) whether the draft's token is right at each position."""
        return self.draw(num_requests, num_tokens, rng).is_right

    def draw(self, num_requests: int, num_tokens: int, rng: np.random.Generator) -> Positions:
        """Draw requests. The same generator gives the same normal and uniform numbers under any parameters, so that laws
        are compared on common random numbers."""
        seen = self.drift(rng.standard_normal((num_requests, num_tokens)))
        hidden = self.drift(rng.standard_normal((num_requests, num_tokens)))
        chance = expit(self.mean + self.confidence_sd * seen + self.hidden_sd * hidden)
        return Positions(rng.random(chance.shape) < chance, seen)

    def drift(self, steps: Floats, *, before: Floats | None = None) -> Floats:
        """(rows, tokens) u along as many positions, from independent standard normal steps of that shape. before: (rows,)
        u at the position before the first, where there is one."""
        kept, spread = self.persistence, np.sqrt(1 - self.persistence**2)
        first = steps[:, :1] if before is None else kept * before[:, None] + spread * steps[:, :1]
        later = lfilter([spread], [1.0, -kept], steps[:, 1:], axis=1, zi=kept * first)[0]
        return np.concatenate([first, later], axis=1)


class OutcomeMoments(NamedTuple):
    """What outcomes along requests say of a law, one row a request, so that requests can be drawn again.

    num: (requests,) positions; right: of them. pairs, products: (requests, MAX_LAG) pairs of positions so far apart, and in
    how many both were right.
    """

    num: Floats
    right: Floats
    pairs: Floats
    products: Floats

    def of(self, rows: NDArray[np.int64]) -> OutcomeMoments:
        """Of some requests, in their order."""
        return OutcomeMoments(*(column[rows] for column in self))


def outcome_moments(traces: Sequence[RequestTrace]) -> OutcomeMoments:
    """Of recorded requests. Raises ValueError without any."""
    if not traces:
        raise ValueError("an acceptance model needs at least one recorded trace, but got none.")
    outcomes = [np.array(trace.ranks) == 0 for trace in traces]
    lags = range(1, MAX_LAG + 1)
    return OutcomeMoments(
        np.array([len(right) for right in outcomes], dtype=float),
        np.array([right.sum() for right in outcomes], dtype=float),
        np.array([[max(0, len(right) - lag) for lag in lags] for right in outcomes], dtype=float),
        np.array([[(right[lag:] & right[:-lag]).sum() for lag in lags] for right in outcomes], dtype=float),
    )


def fit_moments(moments: OutcomeMoments, *, confidence_sd: float = 0.0, near: InformedLaw | None = None) -> InformedLaw:
    """The law whose acceptance is the recorded one and whose outcomes hang together over MAX_LAG positions as the recorded
    ones do (least squares). confidence_sd: what the draft is known to see; the rest of the spread is hidden."""
    rate = float(np.clip(moments.right.sum() / moments.num.sum(), 1e-4, 1 - 1e-4))
    pairs = moments.pairs.sum(axis=0)
    seen = moments.products.sum(axis=0) / np.maximum(pairs, 1) - rate**2

    def loss(parameters: Floats) -> float:
        total_sd, persistence = _within_bounds(parameters, confidence_sd)
        return float(pairs @ (_covariances(_mean_of(rate, total_sd), total_sd, persistence) - seen) ** 2 / pairs.sum())

    begin = (1.0, 0.5) if near is None else (max(near.total_sd, 0.1), near.persistence)
    starts = [begin] if near is not None else [begin, (2.0, 0.9), (0.5, 0.97)]
    fits = [
        minimize(loss, np.array(start), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-12, "maxiter": 200})
        for start in starts
    ]
    total_sd, persistence = _within_bounds(min(fits, key=lambda fit: float(fit.fun)).x, confidence_sd)
    return InformedLaw(
        mean=_mean_of(rate, total_sd),
        confidence_sd=confidence_sd,
        hidden_sd=float(np.sqrt(max(0.0, total_sd**2 - confidence_sd**2))),
        persistence=persistence,
    )


def fit_informed(traces: Sequence[RequestTrace], *, signal: str = "margin") -> InformedLaw:
    """The law of recorded requests of one temperature. What the draft sees is as much as the calibrated signal explains of
    the outcomes. Raises ValueError without signals, and where acceptance never varies."""
    fit = fit_signal(traces, signal)
    values, _ = signal_and_acceptance(traces, signal)
    explained = float(expit(fit.intercept + fit.slope * values).var())
    drifting = fit_moments(outcome_moments(traces))

    def unexplained(confidence_sd: float, total_sd: float) -> float:
        hidden_sd = float(np.sqrt(max(0.0, total_sd**2 - confidence_sd**2)))
        law = InformedLaw(mean=_mean_of(fit.acceptance, total_sd), confidence_sd=confidence_sd, hidden_sd=hidden_sd)
        chance = law.confidence(_NODES)
        return float(chance**2 @ _WEIGHTS) - float(chance @ _WEIGHTS) ** 2 - explained

    total_sd = drifting.total_sd
    if unexplained(total_sd, total_sd) >= 0:
        confidence_sd = float(brentq(unexplained, 0.0, total_sd, args=(total_sd,)))
        return replace(drifting, confidence_sd=confidence_sd, hidden_sd=float(np.sqrt(total_sd**2 - confidence_sd**2)))
    # The signal tells more than hangs together along the requests: then nothing is hidden.
    alone = MAX_SD if unexplained(MAX_SD, MAX_SD) < 0 else brentq(lambda sd: unexplained(sd, sd), 0.0, MAX_SD)
    return fit_moments(outcome_moments(traces), confidence_sd=float(alone))


def _within_bounds(parameters: Floats, least_sd: float) -> tuple[float, float]:
    return (
        float(np.clip(abs(parameters[0]), least_sd, max(MAX_SD, least_sd))),
        float(np.clip(abs(parameters[1]), 0.0, MAX_PERSISTENCE)),
    )


def _mean_of(acceptance: float, total_sd: float) -> float:
    """The mean logit at which a spread gives this acceptance."""
    return float(brentq(lambda mean: float(expit(mean + total_sd * _NODES) @ _WEIGHTS) - acceptance, -60, 60))


def _covariances(mean: float, total_sd: float, persistence: float) -> Floats:
    """(MAX_LAG,) of outcomes so many positions apart."""
    coefficients = _POLYNOMIALS[1:] @ (_WEIGHTS * expit(mean + total_sd * _NODES))
    powers = persistence ** np.outer(np.arange(1, MAX_LAG + 1), _ORDERS[1:])
    covariances: Floats = powers @ coefficients**2
    return covariances


def _transitions(persistence: float) -> tuple[Floats, Floats]:
    """The drift as a chain on the grid: (from, to) chances of a step, and the long-run law."""
    law = np.exp(-(_GRID**2) / 2)
    spread = max(np.sqrt(1 - persistence**2), (_GRID[1] - _GRID[0]) / 1.5)  # no narrower than the grid can show
    step = np.exp(-(((_GRID[None, :] - persistence * _GRID[:, None]) / spread) ** 2) / 2)
    step /= step.sum(axis=1, keepdims=True)
    return step, law / law.sum()

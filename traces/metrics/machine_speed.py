"""The machine's speed over a run as a smooth factor of time that all policies share, and times adjusted for it.

A shared host's speed moves by a quarter within seconds. Policies take turns within short blocks, so what moves all of them
at once can be told from what each of them is:

    log(seconds of a round) = policy's law of its rounds - log(speed of the machine at that time) + rest

Both parts are fitted at once: a policy's law is a constant and slopes over what its rounds contain (draft forwards, pending
tokens, position), the speed is piecewise linear in time with penalised steps between its knots, a local level. How much it
may move is chosen by cross-validation over whole requests: it follows what a request's neighbours tell about it and no more,
so that a policy that is slow on its own account, at some time or always, is not explained away. Outliers are held down
(Huber weights), for the same reason.

Adjusted times are those of a clock that runs with the machine: `MachineSpeed.clock` maps the seconds of a run to seconds at
the machine's median speed. It is monotone, so order and overlaps stay as they were.

Assumption: draft and target slow down alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import solveh_banded

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

COVARIATES = ("num_draft_forwards", "num_pending", "position")  # of a round, as far as a table has them
TIMES = ("start_s", "end_s", "arrival_s", "first_token_s", "finish_s")  # columns that a clock maps
SPANS = ("draft_s", "verify_s")  # durations within start_s and end_s
HUBER = 1.345  # in robust standard deviations: 95% efficient on normal residuals (Huber 1964)
MIN_REQUESTS = 8  # with fewer nothing is adjusted
MAX_KNOTS = 4000
RIDGE = 1e-6  # in units of a knot's data
REQUESTS_PER_KNOT = 1.5
NUM_FOLDS = 5
PENALTIES = (
    *10.0 ** np.linspace(-2, 4, 13),
    1e7,
)  # of steps between knots, in units of a knot's data; the last one is still
FINE = 32  # steps of the clock between two knots
MOVED = 0.02  # a range below this is not worth a word
_FAR_S = 1e4


@dataclass(frozen=True)
class MachineSpeed:
    """The speed of a machine over a run, in units of its median.

    times_s: knots, increasing, in the run's seconds. log_speeds: at each, linear in between and held beyond.
    unexplained: by how much whole requests still differ from their policy's law after the fit, beyond what their rounds
    scatter, as a fraction of their times: mostly drift that is faster than the fit can follow.
    """

    times_s: tuple[float, ...] = (0.0,)
    log_speeds: tuple[float, ...] = (0.0,)
    unexplained: float = 0.0

    def at(self, times_s: ArrayLike) -> Floats:
        """Speed at each time; its median over the time measured is 1."""
        speeds: Floats = np.exp(np.interp(np.asarray(times_s, np.float64), self.times_s, self.log_speeds))
        return speeds

    def clock(self, times_s: ArrayLike) -> Floats:
        """Seconds at the median speed for each time of the run; 0 stays 0."""
        if not any(self.log_speeds):
            return np.asarray(times_s, np.float64)  # to the last digit
        grid, passed = self._grid
        mapped: Floats = np.interp(np.asarray(times_s, np.float64), grid, passed) - np.interp(0.0, grid, passed)
        return mapped

    def adjusted(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of a run (ops, rounds or requests) with its times on this clock."""
        mapped: dict[str, Floats] = {name: self.clock(table[name]) for name in TIMES if name in table}
        for name in SPANS:
            if name in table and any(self.log_speeds):
                mapped[name] = table[name].to_numpy(float) * self.at((table["start_s"] + table["end_s"]) / 2)
        return table.assign(**mapped)

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest speed, in units of the median."""
        return float(np.exp(min(self.log_speeds))), float(np.exp(max(self.log_speeds)))

    @property
    def sentence(self) -> str:
        """What was adjusted for; empty where the machine stood still."""
        return drift_sentence(self.range)

    @cached_property
    def _grid(self) -> tuple[Floats, Floats]:
        """Times, and the integral of the speed up to each."""
        knots = np.asarray(self.times_s)
        pieces = max(1, len(knots) - 1)
        fine = np.interp(np.linspace(0, pieces, FINE * pieces + 1), np.arange(len(knots)), knots)
        grid = np.concatenate([[fine[0] - _FAR_S], fine, [fine[-1] + _FAR_S]])
        middle = self.at((grid[1:] + grid[:-1]) / 2)
        return grid, np.concatenate([[0.0], np.cumsum(middle * np.diff(grid))])


def drift_sentence(drift_range: Sequence[float]) -> str:
    """How far the machine's speed moved, in a sentence without a full stop; empty where it stood still.

    >>> drift_sentence((0.74, 1.21))
    "the machine's speed moved between 0.74 and 1.21 of its median; adjusted for"
    """
    low, high = drift_range
    if high - low < MOVED:
        return ""
    return f"the machine's speed moved between {low:.2f} and {high:.2f} of its median; adjusted for"


def machine_speed_of(requests: pd.DataFrame, rounds: pd.DataFrame) -> MachineSpeed:
    """The machine's speed from the tables of one run, whose policies took turns. A still machine if there is too little."""
    table = rounds.merge(requests[["request_id", "policy", "temperature"]], on="request_id", how="inner")
    table = table[table["end_s"] > table["start_s"]]
    if table["request_id"].nunique() < MIN_REQUESTS:
        return MachineSpeed()
    return fit_machine_speed(
        table["start_s"].to_numpy(float),
        table["end_s"].to_numpy(float),
        groups=table.groupby(["policy", "temperature"]).ngroup().to_numpy(),
        requests=table["request_id"].to_numpy(),
        covariates=table[[name for name in COVARIATES if name in table]].to_numpy(float),
    )


def fit_machine_speed(
    start_s: Floats, end_s: Floats, *, groups: Ints, requests: Ints, covariates: Floats
) -> MachineSpeed:
    """Fit the speed to rounds (or other pieces of work). end_s > start_s.

    groups:     (n,) 0, 1, ...: pieces that follow one law.
    requests:   (n,) what a piece is a part of: what cross-validation leaves out as a whole.
    covariates: (n, c) what a piece contains.
    """
    middle, logs = (start_s + end_s) / 2, np.log(end_s - start_s)
    units = np.unique(requests, return_inverse=True)[1].ravel()
    first = pd.Series(middle).groupby(units).min().to_numpy()
    units = np.argsort(np.argsort(first, kind="stable"), kind="stable")[units]  # numbered in order of time
    knots = _knots(start_s, end_s, len(first))
    # Every second counts alike, whatever the length of a policy's rounds.
    scale = np.exp(pd.Series(logs).groupby(groups).transform("mean").to_numpy())
    fit = _Fit(_laws(groups, covariates), _hats(middle, knots), logs, scale / scale.mean())
    fit.reweight(1.0)
    folds = np.random.default_rng(0).permutation(len(first)) % NUM_FOLDS
    penalty = min(PENALTIES, key=fit.errors(units, folds).__getitem__)
    fit.reweight(penalty)
    solution = fit.solve(fit.sums(), penalty)
    log_speeds = -solution[1]
    log_speeds = log_speeds - _weighted_median(np.interp(middle, knots, log_speeds), end_s - start_s)
    unexplained = _excess(fit.rest(solution), fit.weights, units)
    return MachineSpeed(tuple(knots.tolist()), tuple(log_speeds.tolist()), unexplained)


@dataclass(frozen=True)
class _Sums:
    """Normal equations of some rows. laws: (p, p). cross: (K, p). bands: (2, K) of the knots' tridiagonal part, as
    `scipy.linalg.solveh_banded` has its upper form. law_moments: (p,). knot_moments: (K,)."""

    laws: Floats
    cross: Floats
    bands: Floats
    law_moments: Floats
    knot_moments: Floats

    def minus(self, other: _Sums) -> _Sums:
        """Those of the rows that the other has not."""
        return _Sums(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))


class _Fit:
    """Penalised least squares of laws and knots together. The knots' part is tridiagonal, so their number costs little."""

    def __init__(self, laws: sparse.csr_matrix, hats: sparse.csr_matrix, logs: Floats, weights: Floats) -> None:
        self._laws, self._hats, self._logs, self._base = laws, hats, logs, weights
        self.weights = weights
        num_knots = hats.shape[1]
        self._per_knot = float(weights.sum()) / num_knots
        self._steps = np.zeros((2, num_knots))  # bands of the sum of squared steps
        self._steps[0, 1:] = -1.0
        self._steps[1] = np.r_[1.0, np.full(num_knots - 2, 2.0), 1.0] if num_knots > 1 else 0.0

    def sums(self, rows: NDArray[np.bool_] | None = None) -> _Sums:
        """Of the chosen rows, or all."""
        chosen = slice(None) if rows is None else rows
        laws, hats, logs, weights = self._laws[chosen], self._hats[chosen], self._logs[chosen], self.weights[chosen]
        weighted_laws, weighted_hats = (part.multiply(weights[:, None]).tocsr() for part in (laws, hats))
        tridiagonal = (hats.T @ weighted_hats).tocsr()
        bands = np.stack([np.r_[0.0, tridiagonal.diagonal(1)], tridiagonal.diagonal()])
        return _Sums(
            (laws.T @ weighted_laws).toarray(),
            (hats.T @ weighted_laws).toarray(),
            bands,
            weighted_laws.T @ logs,
            weighted_hats.T @ logs,
        )

    def solve(self, sums: _Sums, penalty: float) -> tuple[Floats, Floats]:
        """Coefficients of the laws and of the knots; the knots are eliminated first."""
        ridge = (
            RIDGE * self._per_knot
        )  # the constant belongs to the laws; and a slope that the data do not tell is none
        bands = sums.bands + penalty * self._per_knot * self._steps
        bands[1] += ridge
        solved = solveh_banded(bands, np.column_stack([sums.cross, sums.knot_moments]))
        inner = sums.laws + ridge * np.eye(len(sums.laws)) - sums.cross.T @ solved[:, :-1]
        laws = np.linalg.solve(inner, sums.law_moments - sums.cross.T @ solved[:, -1])
        return laws, solved[:, -1] - solved[:, :-1] @ laws

    def rest(self, solution: tuple[Floats, Floats], rows: NDArray[np.bool_] | None = None) -> Floats:
        """What the chosen rows, or all, are off by."""
        chosen = slice(None) if rows is None else rows
        laws, knots = solution
        left: Floats = self._logs[chosen] - self._laws[chosen] @ laws - self._hats[chosen] @ knots
        return left

    def reweight(self, penalty: float) -> None:
        """Hold outliers of the fit down."""
        for _ in range(5):
            rest = self.rest(self.solve(self.sums(), penalty))
            spread = max(1.4826 * float(np.median(np.abs(rest))), 1e-9)
            self.weights = self._base * np.minimum(1.0, HUBER * spread / np.maximum(np.abs(rest), 1e-300))

    def errors(self, units: Ints, folds: Ints) -> dict[float, float]:
        """Sum of squared errors of left-out units for each penalty. units: (n,); folds: (units,)."""
        total = dict.fromkeys(PENALTIES, 0.0)
        everything = self.sums()
        for fold in range(NUM_FOLDS):
            rows = folds[units] == fold
            kept = everything.minus(self.sums(rows))
            for penalty in PENALTIES:
                rest = self.rest(self.solve(kept, penalty), rows)
                total[penalty] += float((_by_unit(rest, self.weights[rows], units[rows]) ** 2).sum())
        return total


def _knots(start_s: Floats, end_s: Floats, num_requests: int) -> Floats:
    """Evenly over the run, no closer than a request or two last."""
    begin, end = float(start_s.min()), float(end_s.max())
    num = int(np.clip(round(num_requests / REQUESTS_PER_KNOT), 2, MAX_KNOTS))
    knots: Floats = np.linspace(begin, end, num)
    return knots


def _laws(groups: Ints, covariates: Floats) -> sparse.csr_matrix:
    """(n, terms) a constant for each group, and its slopes over those covariates that vary within it."""
    rows, values = [], []
    for group in range(int(groups.max()) + 1):
        here = np.flatnonzero(groups == group)
        rows.append(here)
        values.append(np.ones(len(here)))
        for column in covariates[here].T:
            spread = float(column.std())
            if spread > 0:
                rows.append(here)
                values.append((column - column.mean()) / spread)
    terms = np.repeat(np.arange(len(rows)), [len(here) for here in rows])
    return sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), terms)), shape=(len(groups), len(rows)))


def _hats(times_s: Floats, knots: Floats) -> sparse.csr_matrix:
    """(n, knots) the weights of linear interpolation between knots."""
    place = np.interp(times_s, knots, np.arange(len(knots)))
    low = np.minimum(place.astype(int), len(knots) - 2)
    share = place - low
    rows = np.arange(len(times_s))
    values, where = np.concatenate([1 - share, share]), (np.concatenate([rows, rows]), np.concatenate([low, low + 1]))
    return sparse.csr_matrix((values, where), shape=(len(times_s), len(knots)))


def _by_unit(values: Floats, weights: Floats, units: Ints) -> Floats:
    """Weighted mean of each unit, in their order."""
    sums, totals = np.bincount(units, values * weights), np.bincount(units, weights)
    present = totals > 0
    means: Floats = sums[present] / totals[present]
    return means


def _excess(rest: Floats, weights: Floats, units: Ints) -> float:
    """Standard deviation of what whole units are off by, beyond what their pieces scatter; robust."""
    means, squares = _by_unit(rest, weights, units), _by_unit(rest**2, weights, units)
    counts = np.bincount(units)
    own = (squares - means**2) / counts[counts > 0]
    spread = 1.4826 * float(np.median(np.abs(means)))
    return float(np.sqrt(max(0.0, spread**2 - float(np.median(own)))))


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])

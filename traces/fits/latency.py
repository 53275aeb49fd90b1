"""How long one operation takes: an affine law with interactions, fitted to measured operations.

    seconds = base + more_tokens (n - 1) + context c + more_branches (b - 1) + context_more_tokens c (n - 1)
              + context_more_branches c (b - 1) + several_tokens [n > 1] + several_branches [b > 1]

for n new tokens in each of b rows after c tokens in the cache. The two last terms are the switch from matrix-vector to
matrix-matrix kernels. The host's bookkeeping counts from n = 0 pending tokens and b = 0 branches instead of 1.

The location is robust (Huber weights on relative residuals), but a slow tail is part of throughput: the law is scaled
so that the mean prediction equals the mean measurement, and the tail stays in the ratios measured / fitted.
Matrix kernels do not grow evenly with the number of rows, so where several widths were measured the law is multiplied by
a table over n, measured / fitted, interpolated and held flat beyond.
Assumption: draws are independent; slow spells that last for many operations are spread out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

# In the order in which they are taken up: a term that the ones before it explain already is left out.
TERMS = (
    "base",
    "more_tokens",
    "context",
    "more_branches",
    "context_more_tokens",
    "context_more_branches",
    "several_tokens",
    "several_branches",
)
NUM_RATIOS = 200
NUM_RESAMPLES = 400
HUBER = 1.345  # in robust standard deviations: 95% efficient on normal residuals (Huber 1964)
PRIOR_OPS = 10  # operations of one width below which its own mean says nothing
MAX_S = 1e6  # of one operation, or a unit of one of its terms: more than ten days
MAX_RATIO = 1e3  # measured over fitted, of a width
MAX_WIDTH = 1 << 16  # tokens of one operation
RATIO_ROUNDING = 1e-3
MIN_UNITS = 5  # with fewer requests than this, stretches of operations are resampled instead


@dataclass(frozen=True, kw_only=True)
class LatencyFit:
    """A fitted law of one group of operations.

    coefficients: seconds (per unit of the term), in the order of TERMS; 0 where left out. intervals: 95%, by bootstrap.
    ratios:    measured / fitted, sorted: the means of equally probable slices; their mean is 1.
    least:     n and b of the smallest operation: 1, for the host 0.
    left_out:  terms that the operations cannot tell apart from the terms before them.
    error:     mean absolute percentage error, as a fraction. r2: None when nothing varies.
    widths:    (n, measured / fitted) of the widths that were measured often enough; empty when there is one.
    """

    coefficients: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    ratios: tuple[float, ...]
    least: int
    left_out: tuple[str, ...]
    r2: float | None
    error: float
    num_ops: int
    num_requests: int
    widths: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(TERMS) or len(self.intervals) != len(TERMS):
            raise ValueError(f"a latency fit needs {len(TERMS)} coefficients and intervals: {', '.join(TERMS)}.")
        if not self.ratios:
            raise ValueError("a latency fit needs at least one ratio; (1.0,) is no noise.")
        if self.least not in (0, 1):
            raise ValueError(f"least of a latency fit must be 0 or 1, but got {self.least}.")
        factors = [factor for _, factor in self.widths]
        limits = (
            (MAX_S, "coefficients", self.coefficients),
            (MAX_RATIO, "widths", factors),
            (math.inf, "error", (self.error,)),
        )
        for most, name, values in limits:
            for value in values:
                if not 0 <= value <= most or value == math.inf:
                    span = f"at most {most:g}" if most < math.inf else "finite"
                    raise ValueError(f"{name} of a latency fit must be at least 0 and {span}, but got {value}.")
        mean = sum(self.ratios) / len(self.ratios)
        if not abs(mean - 1) <= RATIO_ROUNDING:
            raise ValueError(f"ratios of a latency fit must have the mean 1, but have {mean:.6g}.")
        for low, high in self.intervals:
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"intervals of a latency fit must be finite, low to high, but got {low} to {high}.")
        widths = [width for width, _ in self.widths]
        if widths != sorted(set(widths)) or (widths and not 0 <= widths[0] <= widths[-1] <= MAX_WIDTH):
            raise ValueError(f"widths of a latency fit must rise from 0 on, to at most {MAX_WIDTH}, but got {widths}.")

    def mean_s(self, num_tokens: int, num_branches: int, context_tokens: int) -> float:
        """Mean seconds of one operation."""
        base, tokens, context, branches, context_tokens_, context_branches, tokens_switch, branches_switch = (
            self.coefficients
        )
        more, rows = num_tokens - self.least, num_branches - self.least
        mean = (
            base
            + tokens * more
            + branches * rows
            + context_tokens * (context + context_tokens_ * more + context_branches * rows)
            + (tokens_switch if more > 0 else 0.0)
            + (branches_switch if rows > 0 else 0.0)
        )
        if not self.widths:
            return mean
        return mean * self._factors.item(min(num_tokens, len(self._factors) - 1))

    def mean_array(self, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike) -> Array:
        """`mean_s` of arrays that broadcast."""
        more, rows = np.asarray(num_tokens) - self.least, np.asarray(num_branches) - self.least
        base, tokens, context, branches, context_more, context_rows, tokens_switch, branches_switch = self.coefficients
        means: Array = (
            base
            + tokens * more
            + branches * rows
            + np.asarray(context_tokens) * (context + context_more * more + context_rows * rows)
            + tokens_switch * (more > 0)
            + branches_switch * (rows > 0)
        )
        if self.widths:
            means = means * self._factors[np.minimum(num_tokens, len(self._factors) - 1)]
        return means

    @cached_property
    def _factors(self) -> Array:
        """(n,) factor at n = 0 .. the widest; wider ones are as that."""
        factors: Array = np.interp(np.arange(self.widths[-1][0] + 1), *np.transpose(self.widths))
        return factors


def check_law(group: str, fit: LatencyFit) -> None:
    """Refuse, of a group of operations, a law by which time would run back, or a forward would take none."""
    if min(fit.ratios) < 0:
        raise ValueError(f"ratios of {group} must be at least 0, but got {min(fit.ratios)}: time would run back.")
    if group in ("draft", "verify") and not any(fit.coefficients):
        raise ValueError(f"coefficients of {group} are all 0, so that it would take no time.")


def fit_latency(
    seconds: ArrayLike,
    num_tokens: ArrayLike,
    num_branches: ArrayLike,
    context_tokens: ArrayLike,
    request_ids: ArrayLike,
    *,
    least: int = 1,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> LatencyFit:
    """Fit the law to measured operations, one entry each; `rng` draws the bootstrap's resamples, num_resamples of them."""
    times = np.asarray(seconds, float)
    ids = np.asarray(request_ids)
    if not len(times) or not np.isfinite(times).all():
        raise ValueError(f"a latency fit needs finite durations of at least one operation, but got {len(times)}.")
    design = _design(np.asarray(num_tokens), np.asarray(num_branches), np.asarray(context_tokens), least)
    used = _identified(design)
    columns = design[:, used]
    weights = _robust_weights(columns, times)
    units = _units(ids)
    grams, moments, sums, totals = _statistics(columns, times, weights, units)

    solution = _solve(grams.sum(0), moments.sum(0), sums.sum(0), totals.sum())
    num_units = len(totals)
    resampled = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)
    draws = np.array(
        [_solve(np.tensordot(m, grams, 1), m @ moments, m @ sums, float(m @ totals)) for m in resampled.astype(float)]
    )
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)

    fitted = columns @ solution
    widths = _width_table(np.asarray(num_tokens), times, fitted, weights)
    if widths:
        fitted = fitted * np.interp(np.asarray(num_tokens, float), *np.transpose(widths))
    coefficients, intervals = np.zeros(len(TERMS)), np.zeros((len(TERMS), 2))
    coefficients[used], intervals[used] = solution, np.stack([low, high], axis=1)
    spread = float(((times - times.mean()) ** 2).sum())
    is_measurable = times > 0
    return LatencyFit(
        coefficients=tuple(coefficients.tolist()),
        intervals=tuple((float(a), float(b)) for a, b in intervals),
        ratios=_ratios(times, fitted),
        least=least,
        left_out=tuple(term for index, term in enumerate(TERMS) if index not in used),
        r2=1 - float(((times - fitted) ** 2).sum()) / spread if spread > 0 else None,
        error=float((np.abs(fitted - times)[is_measurable] / times[is_measurable]).mean())
        if is_measurable.any()
        else 0.0,
        num_ops=len(times),
        num_requests=len(np.unique(ids)),
        widths=widths,
    )


def _width_table(num_tokens: Array, times: Array, fitted: Array, weights: Array) -> tuple[tuple[int, float], ...]:
    """Measured / fitted for each width, robustly, drawn towards 1 by the weight of PRIOR_OPS operations."""
    table = []
    for width in np.unique(num_tokens).tolist():
        of_width = num_tokens == width
        count = int(of_width.sum())
        if count >= PRIOR_OPS:
            weight = weights[of_width]
            ratio = (weight * times[of_width]).sum() / (weight * fitted[of_width]).sum()
            table.append((int(width), float((count * ratio + PRIOR_OPS) / (count + PRIOR_OPS))))
    if len(table) < 3:
        return ()
    factors = np.interp(np.asarray(num_tokens, float), *np.transpose(table))
    scale = times.sum() / (fitted * factors).sum()  # the mean stays what was measured
    return tuple((width, float(ratio * scale)) for width, ratio in table)


def _design(num_tokens: Array, num_branches: Array, context: Array, least: int) -> Array:
    """(ops, terms)."""
    more, rows = num_tokens - least, num_branches - least
    columns = [np.ones(len(more)), more, context, rows, context * more, context * rows, more > 0, rows > 0]
    return np.stack([np.asarray(column, float) for column in columns], axis=1)


def _identified(design: Array) -> list[int]:
    """Terms that are not explained by the terms taken up before them (Gram-Schmidt)."""
    basis: list[Array] = []
    used = []
    for index, column in enumerate(design.T):
        norm = np.linalg.norm(column)
        rest = column / norm if norm else column
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for direction in basis:
                rest = rest - (rest @ direction) * direction
        if np.linalg.norm(rest) > 1e-6:
            basis.append(rest / np.linalg.norm(rest))
            used.append(index)
    return used


def _robust_weights(columns: Array, times: Array) -> Array:
    """Weights of squared residuals: relative errors, with outliers held down."""
    scale = max(float(np.median(np.abs(times))), 1e-12)
    weights = np.full(len(times), 1 / scale**2)
    for _ in range(20):
        weighted = columns * weights[:, None]
        fitted = columns @ _least_squares(weighted.T @ columns, weighted.T @ times)
        # Relative to the law itself, but no operation counts as faster than a tenth of the typical one.
        level = np.maximum(fitted, scale / 10)
        residuals = (times - fitted) / level
        spread = max(1.4826 * float(np.median(np.abs(residuals - np.median(residuals)))), 1e-9)
        held = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(residuals), 1e-300))
        updated = held / level**2
        if np.allclose(updated, weights, rtol=1e-4):
            break
        weights = updated
    return weights


def _units(ids: NDArray[np.generic]) -> NDArray[np.intp]:
    """What the bootstrap draws: requests, or stretches of operations when there are too few of them."""
    units: NDArray[np.intp] = np.unique(ids, return_inverse=True)[1]
    if units.max() + 1 >= MIN_UNITS:
        return units
    return np.arange(len(ids)) * min(20, len(ids)) // len(ids)


def _statistics(columns: Array, times: Array, weights: Array, units: NDArray[np.intp]) -> tuple[Array, ...]:
    """Of each unit: weighted Gram matrix and moments, and the plain sums of columns and times."""
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(units[order]) > 0])
    columns, times, weights = columns[order], times[order], weights[order]
    weighted = columns * weights[:, None]
    grams = np.add.reduceat(weighted[:, :, None] * columns[:, None, :], starts)
    moments = np.add.reduceat(weighted * times[:, None], starts)
    return grams, moments, np.add.reduceat(columns, starts), np.add.reduceat(times, starts)


def _solve(gram: Array, moment: Array, column_sums: Array, total: float) -> Array:
    """Least squares, scaled so that the mean prediction is the mean measurement."""
    solution = _least_squares(gram, moment)
    predicted = float(column_sums @ solution)
    return solution * max(0.0, total / predicted) if predicted > 0 else solution


def _least_squares(gram: Array, moment: Array) -> Array:
    """Non-negative least squares from the normal equations, whose size does not grow with the operations. A term that none of
    these operations has (in a resample of few requests) is 0."""
    squares = np.diag(gram)
    is_there = squares > 0
    norms = np.sqrt(np.where(is_there, squares, 1.0))
    values, vectors = np.linalg.eigh(gram / np.outer(norms, norms))
    # min |A x - t| has the same minimiser as min |R x - d| with R'R = A'A and R'd = A't.
    roots = np.sqrt(np.maximum(values, 1e-14))
    solution: Array = nnls(roots[:, None] * vectors.T, (vectors.T @ (moment / norms)) / roots)[0] / norms
    return np.where(is_there, solution, 0.0)


def _ratios(times: Array, fitted: Array) -> tuple[float, ...]:
    """Means of equally probable slices of measured / fitted, rescaled to mean 1."""
    is_usable = fitted > 1e-3 * max(float(fitted.max()), 1e-300)
    if not is_usable.any():
        return (1.0,)
    ratios = np.sort(times[is_usable] / fitted[is_usable])
    slices = np.array([part.mean() for part in np.array_split(ratios, min(NUM_RATIOS, len(ratios)))])
    return tuple((slices / slices.mean()).tolist()) if slices.mean() > 0 else (1.0,)


def draw_ratios(ratios: Sequence[float], num: int, rng: np.random.Generator) -> Array:
    """`num` independent ratios measured / fitted."""
    drawn: Array = np.asarray(ratios, float)[rng.integers(len(ratios), size=num)]
    return drawn

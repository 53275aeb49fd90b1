"""What benchmarks say beyond the fitted law of step costs, carried to the draft lengths and loads around them.

A law of few parameters is smooth, and a server is not: matrix products and attention change their kernels with the number of
tokens. On a measured server a draft of 4 tokens was 2 to 3% slower than its neighbours of 3 and 5 at several loads, with each
of three drafts. Such a dip is worth knowing where it was measured, so that a benchmark's residual counts beside the law, as
much as it is likely to be more than luck: Gaussian-process regression (Rasmussen & Williams 2006, equation 2.23), whose
covariance is that of an error which all lengths share and of one which each has of its own, both fading with the load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from traces.importers.server_bench import ServerBench

Floats = NDArray[np.float64]

BENCH_ERROR = 0.02  # of a benchmark's tokens a second, by its luck alone
MODEL_ERROR = 0.02  # of the law's, as its mean error is on a measured server
SHARED = 0.5  # of the variance of that: what all lengths have in common
FADES_OVER = 1.0  # doublings of the load


@dataclass(frozen=True, kw_only=True, eq=False)
class Residuals:
    """lengths, loads: (benchmarks,) draft lengths and concurrencies. weights: (benchmarks,) of their covariances in `at`."""

    lengths: Floats
    loads: Floats
    weights: Floats

    def at(self, draft_length: int, num_running: int) -> float:
        """Logarithm of how much faster this length is at this load than the law says; 0 far from all benchmarks."""
        return float((_covariance([draft_length], [num_running], self.lengths, self.loads) @ self.weights)[0])


def residuals_of(benches: Sequence[ServerBench], fitted_over_measured: Sequence[float]) -> Residuals:
    """fitted_over_measured: (benches,) of the time that each took, less 1: `StepCostFit.residuals`.

    Benchmarks whose memory cannot hold all requests at once are left out: nobody knows how many ran.
    """
    rows = [
        (bench.draft_length, bench.max_concurrency, np.log1p(error))
        for bench, error in zip(benches, fitted_over_measured, strict=True)
        if bench.kv_tokens is None or _tokens_at_once(bench) <= bench.kv_tokens
    ]
    lengths, loads, logs = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    covariance = _covariance(lengths, loads, lengths, loads)
    weights = np.linalg.solve(covariance + BENCH_ERROR**2 * np.eye(len(rows)), logs)
    return Residuals(lengths=lengths, loads=loads, weights=weights.astype(np.float64))


def _tokens_at_once(bench: ServerBench) -> float:
    return bench.max_concurrency * (bench.input_tokens + bench.output_tokens) / bench.num_requests


def _covariance(lengths: ArrayLike, loads: ArrayLike, other_lengths: Floats, other_loads: Floats) -> Floats:
    """(cells, other cells) of the law's errors."""
    is_same = np.equal(np.asarray(lengths)[:, None], other_lengths)
    doublings = np.abs(np.log2(np.asarray(loads, float))[:, None] - np.log2(other_loads))
    covariance: Floats = MODEL_ERROR**2 * (SHARED + (1 - SHARED) * is_same) * np.exp(-doublings / FADES_OVER)
    return covariance

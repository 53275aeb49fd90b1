"""A law fitted to few operations: what hardly any of them tells stays within what they took."""

from __future__ import annotations

import numpy as np
import pytest

from traces.fits.latency import fit_latency


@pytest.mark.parametrize("num_wide", [1, 3])
def test_a_term_that_a_single_request_has_gets_no_absurd_interval(num_wide: int) -> None:
    """Resamples without that request know nothing of the term, which is then 0 in them, and not a number near infinity."""
    rng = np.random.default_rng(0)
    requests = np.repeat(np.arange(12), 10)
    tokens = np.where(requests < num_wide, np.tile([1, 3], 60), 1)
    context = 20 + np.tile(np.arange(10), 12)
    seconds = (0.005 + 0.001 * (tokens - 1)) * rng.lognormal(0, 0.2, 120)
    fit = fit_latency(seconds, tokens, np.ones(120), context, requests, rng=rng)
    assert max(high for _, high in fit.intervals) < 0.05

"""Acceptance as a chain: the chance that the next draft token is right depends on how many were right before it.

One family holds the usual models. With g_a the chance after a right tokens in a row (the last one for all longer runs):

    geometric   g_a = alpha                              the textbook's
    Markov      g_0, g_1                                 the last outcome matters
    hazard      g_0, g_1, ..., g_A                       the length of the run matters

and each may have a per-request effect: a normal shift of all logits, the same along one request. What none of them has:
drift along a request, and what the prompt says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit, logsumexp

from traces.schema import RequestTrace

Floats = NDArray[np.float64]
MAX_AGES = 8
MIN_OBSERVED = 50  # observations that an age needs to have a chance of its own
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(11)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
# For likelihoods: a long request leaves little doubt about its effect, so the nodes must lie close (unlike the ones above).
_FIT_NODES = np.linspace(-4, 4, 81)
_FIT_WEIGHTS = np.exp(-(_FIT_NODES**2) / 2) / np.exp(-(_FIT_NODES**2) / 2).sum()


@dataclass(frozen=True, kw_only=True)
class RoundLaw:
    """Rounds of one draft length. tokens_per_forward: emitted tokens a round, the target's own included.

    conditional: (draft_length,) acceptance of each position, all before it accepted.
    """

    draft_length: int
    tokens_per_forward: float
    conditional: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class AcceptanceChain:
    """hazards: g_0, g_1, ...; request_sd: standard deviation of the requests' shift, on the logit scale; 0 for none.

    log_likelihood: of the traces it was fitted to; num_parameters: that were fitted.
    """

    name: str
    hazards: tuple[float, ...]
    request_sd: float = 0.0
    log_likelihood: float = float("nan")
    num_parameters: int = 0

    def __post_init__(self) -> None:
        if not self.hazards or not all(0 <= hazard <= 1 for hazard in self.hazards):
            raise ValueError(f"hazards must be chances, at least one of them, but got {self.hazards}.")
        if not self.request_sd >= 0:
            raise ValueError(f"request_sd must be at least 0, but got {self.request_sd}.")

    def round_law(self, draft_length: int) -> RoundLaw:
        """Rounds of a fixed draft length in the long run, pooled over requests that emit equally many tokens.

        A round that starts after a right tokens accepts all with s = g_a .. g_(a + L - 1), and then the bonus token was
        right too with g_(a + L): only then does the next round start at age a + L + 1, otherwise at 0.
        """
        nodes, weights = request_nodes(self.request_sd)
        hazards = self._shifted(nodes)
        oldest = hazards.shape[1] - 1
        reach = np.zeros((len(hazards), draft_length + 1))
        visits = np.zeros(len(hazards))
        visit, start = np.ones(len(hazards)), 0
        while True:
            ages = np.minimum(start + np.arange(draft_length + 1), oldest)
            survive = np.cumprod(hazards[:, ages], axis=1)
            if start >= oldest:  # the oldest age leads to itself
                visit = visit / np.maximum(1 - survive[:, -1], 1e-12)
            reach[:, 0] += visit
            reach[:, 1:] += visit[:, None] * survive[:, :-1]
            visits += visit
            if start >= oldest:
                break
            visit, start = visit * survive[:, -1], start + draft_length + 1
        reach /= visits[:, None]
        emitted = 1 + reach[:, 1:].sum(axis=1)
        rounds = weights / emitted  # a request of N tokens takes N / emitted rounds
        pooled = rounds @ reach / rounds.sum()
        conditional = pooled[1:] / np.maximum(pooled[:-1], 1e-300)
        return RoundLaw(
            draft_length=draft_length,
            tokens_per_forward=float(1 / rounds.sum()),
            conditional=tuple(conditional.tolist()),
        )

    @property
    def acceptance(self) -> float:
        """Share of positions at which the draft's token is right, in the long run, averaged over requests."""
        nodes, weights = request_nodes(self.request_sd)
        hazards = self._shifted(nodes)
        run = np.cumprod(hazards, axis=1)  # chance that a run reaches 1, 2, ... tokens
        last = np.minimum(hazards[:, -1], 1 - 1e-12)
        length = run[:, :-1].sum(axis=1) + run[:, -1] / (1 - last)
        return float(weights @ (length / (length + 1)))

    def shifted_to(self, acceptance: float) -> AcceptanceChain:
        """The chain with all logits shifted so that its acceptance is another one."""
        logits = logit(np.clip(self.hazards, 1e-9, 1 - 1e-9))

        def moved(shift: float) -> AcceptanceChain:
            return replace(self, hazards=tuple(expit(logits + shift).tolist()))

        shift = brentq(lambda value: moved(value).acceptance - acceptance, -15, 15)
        return replace(moved(float(shift)), name=f"{self.name}, shifted to {acceptance:g}")

    def sample(self, num_tokens: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(num_tokens,) whether the draft's token is right at each position of one request."""
        is_right: NDArray[np.bool_] = self.sample_many(1, num_tokens, rng)[0]
        return is_right

    def sample_many(self, num_requests: int, num_tokens: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(num_requests, num_tokens) the same for many requests; each begins as after a wrong token."""
        shifts = rng.standard_normal(num_requests) if self.request_sd else np.zeros(num_requests)
        hazards = self._shifted(shifts)
        rows, ages = np.arange(num_requests), np.zeros(num_requests, dtype=np.int64)
        is_right = np.zeros((num_requests, num_tokens), dtype=bool)
        for position in range(num_tokens):
            is_right[:, position] = rng.random(num_requests) < hazards[rows, ages]
            ages = np.where(is_right[:, position], np.minimum(ages + 1, hazards.shape[1] - 1), 0)
        return is_right

    def _shifted(self, nodes: Floats) -> Floats:
        """(nodes, ages) hazards of requests whose effect is that many standard deviations."""
        logits = logit(np.clip(self.hazards, 1e-9, 1 - 1e-9))
        hazards: Floats = expit(logits + self.request_sd * nodes[:, None])
        return hazards


def request_nodes(request_sd: float) -> tuple[Floats, Floats]:
    """Standard normal effects and their weights (Gauss and Hermite); one of weight 1 when requests do not differ."""
    return (_NODES, _WEIGHTS) if request_sd else (np.zeros(1), np.ones(1))


def fit_markov(traces: Sequence[RequestTrace]) -> AcceptanceChain:
    """The last outcome and the request matter. Raises ValueError without traces."""
    return fit_counts("Markov", run_counts(traces, 2), has_effect=True)


def fit_hazard(traces: Sequence[RequestTrace]) -> AcceptanceChain:
    """The length of the run and the request matter; ages with few observations share one chance.

    Raises ValueError without traces.
    """
    return fit_counts("hazard", run_counts(traces, well_observed_ages(traces)), has_effect=True)


def well_observed_ages(traces: Sequence[RequestTrace]) -> int:
    """How many run lengths, of MAX_AGES at most, were seen often enough to have a chance of their own."""
    counts = run_counts(traces, MAX_AGES)
    return max(1, int((counts.sum(axis=(0, 1)) >= MIN_OBSERVED).sum()))


def run_counts(traces: Sequence[RequestTrace], num_ages: int) -> NDArray[np.int64]:
    """(requests, 2, ages) how often the draft was wrong (0) and right (1) after each run; longer runs count as the
    oldest. Raises ValueError without traces.
    """
    if not traces:
        raise ValueError("an acceptance model needs at least one recorded trace, but got none.")
    counts = np.zeros((len(traces), 2, num_ages), dtype=np.int64)
    for row, trace in enumerate(traces):
        age = 0
        for rank in trace.ranks:
            is_right = rank == 0
            counts[row, int(is_right), age] += 1
            age = min(age + 1, num_ages - 1) if is_right else 0
    return counts


def fit_counts(
    name: str, counts: NDArray[np.int64], *, has_effect: bool, near: AcceptanceChain | None = None
) -> AcceptanceChain:
    """Maximum likelihood of `run_counts`, the requests' effect integrated out; half an observation each way keeps
    chances off 0 and 1. near: a fit to start from."""
    wrong, right = counts[:, 0].astype(float), counts[:, 1].astype(float)
    start = logit((right.sum(axis=0) + 0.5) / (counts.sum(axis=(0, 1)) + 1.0))
    num_ages = counts.shape[2]
    if not has_effect or len(counts) < 2:
        value = float((right * -np.logaddexp(0, -start) + wrong * -np.logaddexp(0, start)).sum())
        return AcceptanceChain(
            name=name, hazards=tuple(expit(start).tolist()), log_likelihood=value, num_parameters=num_ages
        )

    def loss(parameters: Floats) -> float:
        logits = parameters[:-1] + np.exp(parameters[-1]) * _FIT_NODES[:, None]  # (nodes, ages)
        inside = right @ -np.logaddexp(0, -logits).T + wrong @ -np.logaddexp(0, logits).T  # (requests, nodes)
        return -float(logsumexp(inside, axis=1, b=_FIT_WEIGHTS).sum())

    bounds = [(-12.0, 12.0)] * num_ages + [(-6.0, 1.5)]
    begin = np.r_[start, -1.0] if near is None else np.r_[logit(near.hazards), np.log(near.request_sd)]
    best = minimize(loss, np.clip(begin, -6.0, 6.0), method="L-BFGS-B", bounds=bounds)
    return AcceptanceChain(
        name=name + " with a request effect",
        hazards=tuple(expit(best.x[:-1]).tolist()),
        request_sd=float(np.exp(best.x[-1])),
        log_likelihood=-float(best.fun),
        num_parameters=num_ages + 1,
    )

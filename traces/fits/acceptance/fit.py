"""Which acceptance models do recorded traces reject? Each is fitted, and must predict the tokens per target forward.

The test: tokens per target forward at draft lengths 1 to 16, predicted by the model, and exact by replay of the traces.
Both come from the same requests, so the requests are drawn again (bootstrap), the model fitted again, and the differences
compared with how much they scatter: the largest of all lengths, in standard errors, gives the p-value. A model that is
rejected is not useless: the report says by how much it errs.

    report = assess_acceptance(read_run(folder).traces())
    print(report.text())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from traces.fits.acceptance.chain import AcceptanceChain, RoundLaw, fit_counts, run_counts, well_observed_ages
from traces.fits.acceptance.informed import InformedLaw, OutcomeMoments, fit_moments, outcome_moments
from traces.schema import RequestTrace

Floats = NDArray[np.float64]
LENGTHS = tuple(range(1, 17))
LEVEL = 0.02  # p-value below which a model counts as rejected
NUM_RESAMPLES = 60
MIN_REQUESTS = 8
NUM_SAMPLED = 4000  # requests that show what the ends of a request do


@dataclass(frozen=True, kw_only=True)
class ModelFit:
    """One model on the traces of one temperature.

    predicted: tokens per target forward by draft length. mean_error, worst_error: relative, absolute. p_value: None for
    replay, which is exact. log_likelihood: of right and wrong along the requests, None where it has none.
    """

    name: str
    num_parameters: int
    predicted: tuple[float, ...]
    mean_error: float
    worst_error: float
    p_value: float | None
    log_likelihood: float | None

    @property
    def is_rejected(self) -> bool:
        """Whether the traces reject the model."""
        return self.p_value is not None and self.p_value < LEVEL


@dataclass(frozen=True, kw_only=True)
class AcceptanceReport:
    """measured: tokens per target forward by draft length, from replay. models: simplest first."""

    temperature: float
    num_requests: int
    num_tokens: int
    lengths: tuple[int, ...]
    measured: tuple[float, ...]
    models: tuple[ModelFit, ...]

    @property
    def rejected(self) -> tuple[str, ...]:
        """Names of the models that the traces reject."""
        return tuple(model.name for model in self.models if model.is_rejected)

    def text(self) -> str:
        """A small table."""
        lines = [
            f"acceptance models at T = {self.temperature:g}, {self.num_requests} requests, {self.num_tokens} tokens, "
            f"draft lengths {self.lengths[0]} to {self.lengths[-1]}",
            f"{'model':<42}{'parameters':>11}{'mean error':>12}{'worst':>8}{'p':>8}",
        ]
        for model in self.models:
            p_value = "exact" if model.p_value is None else f"{model.p_value:.3f}"
            verdict = "  rejected" if model.is_rejected else ""
            lines.append(
                f"{model.name:<42}{model.num_parameters:>11}{model.mean_error:>12.2%}{model.worst_error:>8.2%}"
                f"{p_value:>8}{verdict}"
            )
        lines.append(f"rejected by the trace: {', '.join(self.rejected) or 'none'}")
        return "\n".join(lines)


def assess_acceptance(traces: Sequence[RequestTrace], *, seed: int = 0) -> AcceptanceReport:
    """Fit and test the models on traces of one temperature. seed: of the resamples.

    Raises ValueError for fewer than MIN_REQUESTS traces, or several temperatures.
    """
    if len(traces) < MIN_REQUESTS:
        raise ValueError(
            f"testing acceptance models takes {MIN_REQUESTS} requests, but got {len(traces)}; record more."
        )
    if len({trace.temperature for trace in traces}) > 1:
        raise ValueError("the traces differ in temperature; test the models at one at a time.")
    recorded = _Recorded(run_counts(traces, well_observed_ages(traces)), outcome_moments(traces))
    emitted, rounds = replayed_lengths(traces, LENGTHS)
    measured = emitted.sum(axis=0) / rounds.sum(axis=0)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(traces), size=len(traces)) for _ in range(NUM_RESAMPLES)]
    models = [_tested(name, law, recorded, emitted, rounds, LENGTHS, drawn) for name, law in _MODELS.items()]
    models.append(
        ModelFit(
            name="replay of the recorded requests",
            num_parameters=0,
            predicted=tuple(measured.tolist()),
            mean_error=0.0,
            worst_error=0.0,
            p_value=None,
            log_likelihood=None,
        )
    )
    return AcceptanceReport(
        temperature=traces[0].temperature,
        num_requests=len(traces),
        num_tokens=sum(trace.num_tokens for trace in traces),
        lengths=LENGTHS,
        measured=tuple(measured.tolist()),
        models=tuple(models),
    )


def replayed_lengths(traces: Sequence[RequestTrace], lengths: Sequence[int]) -> tuple[Floats, Floats]:
    """(requests, lengths) emitted tokens and rounds of serial speculation with each draft length, by replay."""
    longest = max(trace.num_tokens for trace in traces)
    is_right = np.zeros((len(traces), longest), dtype=bool)
    for row, trace in enumerate(traces):
        is_right[row, : trace.num_tokens] = np.array(trace.ranks) == 0
    num_tokens = np.array([trace.num_tokens for trace in traces])
    rounds = np.stack([_num_rounds(is_right, num_tokens, length) for length in lengths], axis=1)
    return np.repeat(num_tokens[:, None], len(lengths), axis=1).astype(float), rounds


def _num_rounds(is_right: NDArray[np.bool_], num_tokens: NDArray[np.int64], length: int) -> Floats:
    """(requests,) rounds until each request has emitted all its tokens; its last round may be cut short."""
    num, width = is_right.shape
    runs = np.zeros((num, width + 1), dtype=np.int64)  # right tokens from each position on
    for position in range(width - 1, -1, -1):
        runs[:, position] = np.where(is_right[:, position], runs[:, position + 1] + 1, 0)
    rows, positions, rounds = np.arange(num), np.zeros(num, dtype=np.int64), np.zeros(num)
    while len(rows):
        rounds[rows] += 1
        positions = positions + np.minimum(runs[rows, positions], length) + 1
        is_open = positions < num_tokens[rows]
        rows, positions = rows[is_open], positions[is_open]
    return rounds


class _RoundsLaw(Protocol):
    """What every model here can say: rounds in the long run, and requests."""

    def round_law(self, draft_length: int) -> RoundLaw: ...

    def sample_many(self, num_requests: int, num_tokens: int, rng: np.random.Generator) -> NDArray[np.bool_]: ...


def _end_effects(laws: Sequence[_RoundsLaw], shares: Floats, num_tokens: int, lengths: Sequence[int]) -> Floats:
    """(lengths,) tokens per target forward of requests of a given length over those in the long run.

    A request starts and ends somewhere, which moves its mean by up to some percent: measured on sampled requests.
    """
    rng = np.random.default_rng(0)
    samples = [
        law.sample_many(max(1, round(NUM_SAMPLED * share)), num_tokens, rng)
        for law, share in zip(laws, shares / shares.sum(), strict=True)
    ]
    is_right = np.concatenate(samples)
    all_tokens = np.full(len(is_right), num_tokens)
    finite = [num_tokens * len(is_right) / _num_rounds(is_right, all_tokens, length).sum() for length in lengths]
    return np.array(finite) / _long_run(laws, shares, lengths)


def _long_run(laws: Sequence[_RoundsLaw], shares: Floats, lengths: Sequence[int]) -> Floats:
    """(lengths,) tokens per target forward, requests of all laws emitting equally many tokens."""
    tokens = np.array([[law.round_law(length).tokens_per_forward for length in lengths] for law in laws])
    pooled: Floats = shares.sum() / (shares @ (1 / tokens))
    return pooled


class _Recorded(NamedTuple):
    """What the models are fitted to, one row a request: `run_counts` and `outcome_moments`."""

    counts: NDArray[np.int64]
    moments: OutcomeMoments

    def of(self, rows: NDArray[np.int64]) -> _Recorded:
        return _Recorded(self.counts[rows], self.moments.of(rows))


@dataclass(frozen=True)
class _Law:
    """A fitted model: laws and their shares of the requests."""

    laws: tuple[_RoundsLaw, ...]
    shares: Floats
    num_parameters: int
    log_likelihood: float | None


_Fit = Callable[[_Recorded, _RoundsLaw | None], _Law]


def _chain_law(name: str, num_ages: int | None, has_effect: bool) -> _Fit:
    def fit(recorded: _Recorded, near: _RoundsLaw | None) -> _Law:
        start = near if isinstance(near, AcceptanceChain) else None
        chain = fit_counts(name, _merged(recorded.counts, num_ages), has_effect=has_effect, near=start)
        return _Law((chain,), np.ones(1), chain.num_parameters, chain.log_likelihood)

    return fit


def _empirical_law(recorded: _Recorded, near: _RoundsLaw | None) -> _Law:
    """`traces.fits.acceptance.joint`: thirds of the requests by their own acceptance, the last outcome in each."""
    counts = recorded.counts
    of_request = counts.sum(axis=2)
    order = np.argsort(of_request[:, 1] / of_request.sum(axis=1), kind="stable")
    thirds = np.array_split(order, 3)
    chains = [fit_counts("third", _merged(counts[third], 2), has_effect=False) for third in thirds]
    return _Law(tuple(chains), np.array([float(len(third)) for third in thirds]), 6, None)


def _informed_law(recorded: _Recorded, near: _RoundsLaw | None) -> _Law:
    """`traces.fits.acceptance.informed`: a logit that drifts. Draft lengths do not hang on how much of it the draft sees."""
    law = fit_moments(recorded.moments, near=near if isinstance(near, InformedLaw) else None)
    return _Law((law,), np.ones(1), 3, None)


_MODELS: dict[str, _Fit] = {
    "geometric (i.i.d.)": _chain_law("geometric", 1, False),
    "Markov": _chain_law("Markov", 2, False),
    "hazard by run length": _chain_law("hazard", None, False),
    "geometric with a request effect": _chain_law("geometric", 1, True),
    "Markov with a request effect": _chain_law("Markov", 2, True),
    "hazard by run length with a request effect": _chain_law("hazard", None, True),
    "empirical (signal and rank, thirds)": _empirical_law,
    "informed (a logit that drifts)": _informed_law,
}


def _tested(
    name: str,
    fit: _Fit,
    recorded: _Recorded,
    emitted: Floats,
    rounds: Floats,
    lengths: Sequence[int],
    drawn: Sequence[NDArray[np.int64]],
) -> ModelFit:
    """One model fitted, and its differences from replay held against their scatter."""
    measured = emitted.sum(axis=0) / rounds.sum(axis=0)
    law = fit(recorded, None)
    ends = _end_effects(law.laws, law.shares, round(float(emitted[:, 0].mean())), lengths)

    def tokens(of: _Law) -> Floats:
        per_forward: Floats = _long_run(of.laws, of.shares, lengths) * ends
        return per_forward

    predicted = tokens(law)
    difference = predicted - measured
    scatter = np.array(
        [
            tokens(fit(recorded.of(rows), law.laws[0])) - emitted[rows].sum(axis=0) / rounds[rows].sum(axis=0)
            for rows in drawn
        ]
    )
    stderr = np.maximum(scatter.std(axis=0, ddof=1), 1e-9 * measured)
    largest = np.abs((scatter - difference) / stderr).max(axis=1)
    statistic = float(np.abs(difference / stderr).max())
    return ModelFit(
        name=name,
        num_parameters=law.num_parameters,
        predicted=tuple(predicted.tolist()),
        mean_error=float(np.abs(difference / measured).mean()),
        worst_error=float(np.abs(difference / measured).max()),
        p_value=float((1 + (largest >= statistic).sum()) / (1 + len(largest))),
        log_likelihood=law.log_likelihood,
    )


def _merged(counts: NDArray[np.int64], num_ages: int | None) -> NDArray[np.int64]:
    """Counts with all runs of num_ages - 1 and more as one."""
    if num_ages is None or num_ages >= counts.shape[2]:
        return counts
    return np.concatenate(
        [counts[:, :, : num_ages - 1], counts[:, :, num_ages - 1 :].sum(axis=2, keepdims=True)], axis=2
    )

"""Step costs from measurements: least squares over any stretches of steps whose forwards are known.

A point of a verify-cost grid is one forward; a run of a server is a thousand steps, whose sums the clock gives and whose
forwards a simulation tells. Both are a `Measurement`, and both ask the same law (`traces.fits.step_costs`).

Parameters are fitted as logarithms, so that none turns negative, with relative errors, and with a prior each: a few dozen runs
do not tell contexts from rows (they grow together), and a prior that holds for most transformers decides what the data
leave open. Priors are wide; where data speak they are not heard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from traces.fits.step_costs import ForwardCost, StepCosts

Floats = NDArray[np.float64]

PARAMETERS = ("floor_s", "token_s", "sharpness", "context_s", "request_s", "uncaptured_s", "ramp_s", "ramp_tokens")
SHARED = ("sharpness", "ramp_tokens")  # a draft has the target's, unless its prior frees its own
HOST = "host_s"  # once a step, of a server with this draft; see `StepCosts`
Z95 = 1.959964
RIDGE_TOKENS = (
    300  # peak FLOP a byte of an H100 in bf16, hence tokens at which a dense model's two roofs cross; A100: 150
)
CONTEXT_FLOOR_TOKENS = (
    250_000  # tokens of context that take as long to read as the weights: 32B 250k, 8B 120k, 1.7B 30k
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Seconds of a stretch of steps, and the forwards in it.

    target, draft: (kinds, 4) num_tokens, context_tokens, num_requests, and how many such forwards there were.
    draft_name: which draft; "" for none. relative_error: one standard deviation of seconds.
    """

    seconds: float
    target: Floats
    draft: Floats | None = None
    draft_name: str = ""
    relative_error: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"a measurement needs seconds above 0, but got {self.seconds}.")
        if (self.draft is None) != (not self.draft_name):
            raise ValueError(f"a measurement with a draft names it, but draft_name is {self.draft_name!r}.")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A guess, and how far each parameter may lie from it: one standard deviation of its logarithm.

    Parameters that `spread` does not name, and those whose guess is 0, stay what they are. host_s: of a draft, what a step
    that speculates takes besides its forwards: rejection sampling, preparing the draft, and a schedule not made ahead.
    """

    guess: ForwardCost
    spread: Mapping[str, float]
    host_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.spread.items():
            if name not in (*PARAMETERS, HOST) or not value > 0:
                raise ValueError(
                    f"a spread above 0 of one of {', '.join((*PARAMETERS, HOST))} is needed, but got {name}={value}."
                )

    def guess_of(self, name: str) -> float:
        """Of one parameter."""
        return self.host_s if name == HOST else float(getattr(self.guess, name))

    @property
    def free(self) -> list[str]:
        """Parameters that are fitted."""
        return [name for name in (*PARAMETERS, HOST) if name in self.spread and self.guess_of(name) > 0]


def target_prior(floor_s: float, *, max_graph_tokens: int | None = None) -> Prior:
    """Of a dense transformer whose step takes floor_s at low load."""
    guess = ForwardCost(
        floor_s=floor_s,
        token_s=floor_s / RIDGE_TOKENS,
        sharpness=3.0,
        context_s=floor_s / CONTEXT_FLOOR_TOKENS,
        request_s=1e-5,
        uncaptured_s=floor_s * 0.03,
        ramp_s=floor_s * 0.05,
        ramp_tokens=16.0,
    )
    spread = {
        "floor_s": 1.0, "token_s": 0.5, "sharpness": 0.1, "context_s": 1.0, "request_s": 1.0, "uncaptured_s": 1.5,
        "ramp_s": 2.0, "ramp_tokens": 0.7,
    }  # fmt: skip
    if max_graph_tokens is not None:
        guess = replace(guess, max_graph_tokens=max_graph_tokens)
    return Prior(guess=guess, spread=spread)


def draft_prior(floor_s: float, target: ForwardCost) -> Prior:
    """Of a draft on the target's device. Small models are launches as much as reading, so their roof is less certain."""
    share = min(floor_s / target.floor_s, 1.0)
    guess = ForwardCost(
        floor_s=floor_s,
        token_s=target.token_s * share,
        sharpness=target.sharpness,
        context_s=target.context_s * math.sqrt(share) / 2,
        request_s=target.request_s,
        ramp_s=floor_s * 0.1,
        ramp_tokens=target.ramp_tokens,
        uncaptured_s=target.uncaptured_s * share,
        max_graph_tokens=target.max_graph_tokens,
    )
    spread = {"floor_s": 1.0, "token_s": 1.0, "context_s": 1.0, "request_s": 1.0, "uncaptured_s": 1.5, "ramp_s": 1.0}
    spread[HOST] = 1.0
    return Prior(guess=guess, spread=spread, host_s=0.03 * target.floor_s)


@dataclass(frozen=True, kw_only=True)
class StepCostFit:
    """Fitted forwards.

    target, drafts: the laws; drafts by name. hosts: seconds a step besides, by draft. intervals: 95% of each fitted
    parameter, by "target.NAME" or "DRAFT.NAME", from the covariance of the least squares (priors included).
    residuals: (measurements,) fitted / measured - 1. deviations: rows of a matrix whose product with standard normal numbers
    gives the logarithms' errors, in the order of intervals; () where nothing was fitted.
    """

    target: ForwardCost
    drafts: Mapping[str, ForwardCost]
    hosts: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    residuals: tuple[float, ...]
    deviations: tuple[tuple[float, ...], ...] = ()

    def drawn(self, rng: np.random.Generator) -> StepCostFit:
        """Another fit that the measurements leave possible: its parameters are drawn from what they say of these."""
        roots = np.array(self.deviations).reshape(len(self.intervals), -1)
        errors = roots @ rng.standard_normal(roots.shape[1])
        values: dict[str, dict[str, float]] = {}
        for name, error in zip(self.intervals, errors.tolist(), strict=True):
            model, _, parameter = name.rpartition(".")
            values.setdefault(model, {})[parameter] = error
        for model in self.drafts:
            own = values.setdefault(model, {})
            for parameter in SHARED:
                own.setdefault(parameter, values.get("target", {}).get(parameter, 0.0))
        hosts = {model: seconds * math.exp(values[model].get(HOST, 0.0)) for model, seconds in self.hosts.items()}
        return StepCostFit(
            target=_moved(self.target, values.get("target", {})),
            drafts={model: _moved(law, values[model]) for model, law in self.drafts.items()},
            hosts=hosts,
            intervals={},
            residuals=(),
        )

    def step_costs(self, draft_name: str = "") -> StepCosts:
        """With one draft, or none. Raises KeyError for a draft that was not fitted."""
        if not draft_name:
            return StepCosts(target=self.target)
        return StepCosts(target=self.target, draft=self.drafts[draft_name], host_s=self.hosts[draft_name])

    @property
    def mean_abs_error(self) -> float:
        """Over the measurements."""
        return float(np.mean(np.abs(self.residuals)))


def total_s(measurement: Measurement, costs: StepCosts) -> float:
    """Seconds of a measurement's forwards by these costs."""
    *sums, counts = measurement.target.T
    seconds = float(counts @ costs.target.seconds_array(*sums)) + costs.host_s * float(counts.sum())
    if measurement.draft is not None and costs.draft is not None:
        *sums, counts = measurement.draft.T
        seconds += float(counts @ costs.draft.seconds_array(*sums))
    return seconds


def fit_step_costs(
    measurements: Sequence[Measurement], target: Prior, drafts: Mapping[str, Prior] | None = None
) -> StepCostFit:
    """Fit all laws together.

    How sharply roofs meet and over how many tokens the ramp rises is the same for the drafts as for the target, unless a
    draft's prior frees its own. Raises ValueError without
    measurements, and where one names a draft without a prior.
    """
    drafts = drafts or {}
    unknown = {m.draft_name for m in measurements if m.draft_name} - drafts.keys()
    if not measurements or unknown:
        raise ValueError(f"a fit needs measurements, and a prior for every draft; missing: {sorted(unknown) or 'all'}.")
    priors = {"target": target, **drafts}
    names = [(model, name) for model, prior in priors.items() for name in prior.free]
    start = np.log([priors[model].guess_of(name) for model, name in names])
    spread = np.array([priors[model].spread[name] for model, name in names])

    def fitted(logs: Floats) -> StepCostFit:
        values: dict[str, dict[str, float]] = {model: {} for model in priors}
        for (model, name), value in zip(names, np.exp(logs).tolist(), strict=True):
            values[model][name] = max(value, 1.0) if name == "sharpness" else value
        for model in drafts:
            for name in SHARED:
                values[model].setdefault(name, values["target"].get(name, getattr(target.guess, name)))
        laws = {model: _with(prior.guess, values[model]) for model, prior in priors.items()}
        hosts = {model: values[model].get(HOST, prior.host_s) for model, prior in drafts.items()}
        return StepCostFit(target=laws.pop("target"), drafts=laws, hosts=hosts, intervals={}, residuals=())

    def ratios(logs: Floats) -> Floats:
        fit = fitted(logs)
        return np.array([total_s(m, fit.step_costs(m.draft_name)) / m.seconds for m in measurements])

    errors = np.array([measurement.relative_error for measurement in measurements])

    def residuals(logs: Floats) -> Floats:
        return np.concatenate([np.log(ratios(logs)) / errors, (logs - start) / spread])

    solved = least_squares(residuals, start, x_scale="jac")
    covariance = np.linalg.inv(solved.jac.T @ solved.jac)
    deviations = np.sqrt(np.diag(covariance))
    misfit = max(1.0, math.sqrt(2 * solved.cost / len(measurements)))  # errors larger than stated widen the intervals
    intervals = {
        f"{model}.{name}": (math.exp(log - Z95 * misfit * sd), math.exp(log + Z95 * misfit * sd))
        for (model, name), log, sd in zip(names, solved.x.tolist(), deviations.tolist(), strict=True)
    }
    levels, vectors = np.linalg.eigh(covariance)
    roots = misfit * vectors * np.sqrt(np.maximum(levels, 0.0))
    return replace(
        fitted(solved.x),
        intervals=intervals,
        residuals=tuple((ratios(solved.x) - 1).tolist()),
        deviations=tuple(map(tuple, roots.tolist())),
    )


def _moved(law: ForwardCost, errors: Mapping[str, float]) -> ForwardCost:
    """The law with its parameters' logarithms moved."""
    values = {name: getattr(law, name) * math.exp(errors.get(name, 0.0)) for name in PARAMETERS}
    values["sharpness"] = max(values["sharpness"], 1.0)
    return ForwardCost(**values, max_graph_tokens=law.max_graph_tokens)


def _with(guess: ForwardCost, values: Mapping[str, float]) -> ForwardCost:
    """The guess with these parameters."""
    parameters = {name: values.get(name, getattr(guess, name)) for name in PARAMETERS}
    return ForwardCost(**parameters, max_graph_tokens=guess.max_graph_tokens)

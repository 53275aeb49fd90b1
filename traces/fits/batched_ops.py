"""Step costs of one's own pair: the operations of a sweep over batches, fitted by the law that plans use.

Each operation is one forward of the target or of the draft over so many requests: batch, new tokens a request, and context
are known, so that each combination is a measurement of `traces.fits.step_cost_fit`. The guesses that it begins with come from
the sweep itself, for a CPU has other roofs than the accelerators that the priors of `target_prior` are made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from traces.fits.step_cost_fit import Measurement, Prior, StepCostFit, fit_step_costs
from traces.fits.step_costs import ForwardCost, StepCosts
from traces.folder.run import Run
from traces.schema import Actor

BATCH_SWEEP = "batch sweep"  # the policy of the requests whose operations these are
DRAFT = "draft"
MIN_GROUPS = 6  # combinations of batch, width and context of each model
_ERROR = 0.02  # relative, of one combination; what the law leaves out is more than its noise
_SHAPE = ["num_tokens", "batch", "context_tokens"]
_COLUMNS = [*_SHAPE, "seconds"]


@dataclass(frozen=True, kw_only=True)
class BatchedCosts:
    """What a sweep over batches says. num_groups: combinations measured. fit: laws with intervals and residuals."""

    fit: StepCostFit
    num_groups: int

    @property
    def costs(self) -> StepCosts:
        """As `specbranch plan --costs` reads them."""
        return self.fit.step_costs(DRAFT)

    def write(self, path: Path) -> None:
        """As JSON."""
        self.costs.write(path)

    def report(self) -> str:
        """A sentence on the fit, and a line a model."""
        target, draft = self.costs.target, self.costs.draft
        assert draft is not None
        lines = [
            f"Steps of {self.num_groups} batches: fitted within {self.fit.mean_abs_error:.1%} in the mean, "
            f"{max(map(abs, self.fit.residuals)):.1%} at worst."
        ]
        for name, cost in (("target", target), (DRAFT, draft)):
            low, high = self.fit.intervals[f"{name}.token_s"]
            parts = (
                f"{1e3 * cost.floor_s:.3g} ms at least",
                f"{1e6 * cost.token_s:.3g} [{1e6 * low:.3g}, {1e6 * high:.3g}] us a new token",
                f"{1e9 * cost.context_s:.3g} ns a token of context",
                f"{1e6 * cost.request_s:.3g} us a request",
            )
            lines.append(f"{name}: {', '.join(parts)}")
        return "\n".join(lines)


def is_batched(ops: pd.DataFrame, requests: pd.DataFrame) -> pd.Series:
    """(ops,) whether an operation belongs to a sweep over batches."""
    return ops["request_id"].isin(requests.loc[requests["policy"] == BATCH_SWEEP, "request_id"])


def fit_batches(run: Run) -> BatchedCosts | None:
    """Of a recorded sweep; None where it has no batches. Raises ValueError where they are too few to fit."""
    ops = run.ops[is_batched(run.ops, run.requests)]
    if ops.empty:
        return None
    seconds = ops.assign(seconds=ops["end_s"] - ops["start_s"]).groupby(["actor", *_SHAPE])["seconds"].median()
    models = {actor: seconds.loc[actor].reset_index() for actor in (Actor.TARGET, Actor.DRAFT) if actor in seconds}
    for actor in (Actor.TARGET, Actor.DRAFT):
        num_groups = len(models.get(actor, ()))
        if num_groups < MIN_GROUPS:
            raise ValueError(
                f"{run.folder}: {num_groups} combinations of batch, width and context of the {actor.value} are too few to fit "
                f"its step costs; at least {MIN_GROUPS} are needed."
            )
    target, draft = _prior(models[Actor.TARGET]), _prior(models[Actor.DRAFT])
    # A law of the draft alone: its forwards stand beside an unmeasured step of the target that takes no time.
    measurements = [_measurement(row, "") for row in models[Actor.TARGET][_COLUMNS].to_numpy(float)]
    measurements += [_measurement(row, DRAFT) for row in models[Actor.DRAFT][_COLUMNS].to_numpy(float)]
    fit = fit_step_costs(measurements, target, {DRAFT: draft})
    return BatchedCosts(fit=fit, num_groups=len(measurements))


def _measurement(row: NDArray[np.float64], draft_name: str) -> Measurement:
    """One forward. row: of `_COLUMNS`."""
    num_tokens, batch, context, seconds = row.tolist()
    forward = np.array([[num_tokens * batch, context * batch, batch, 1.0]])
    none = np.zeros((0, 4))
    if not draft_name:
        return Measurement(seconds=seconds, target=forward, relative_error=_ERROR)
    return Measurement(seconds=seconds, target=none, draft=forward, draft_name=draft_name, relative_error=_ERROR)


def _prior(measured: pd.DataFrame) -> Prior:
    """Guesses from the ends of the sweep, within which the data decide."""
    tokens, contexts = measured["num_tokens"] * measured["batch"], measured["context_tokens"] * measured["batch"]
    seconds = measured["seconds"]
    floor_s = float(seconds.min())
    token_s = _slope(tokens, seconds) or floor_s / 100
    context_s = _slope(contexts[tokens == tokens.min()], seconds[tokens == tokens.min()]) or floor_s / 1e5
    guess = ForwardCost(
        floor_s=floor_s,
        token_s=token_s,
        sharpness=2.0,
        context_s=context_s,
        request_s=floor_s / 100,
        ramp_s=floor_s * 0.1,
        ramp_tokens=8.0,
        max_graph_tokens=1 << 30,
    )
    spread = {"floor_s": 1.0, "token_s": 1.0, "sharpness": 0.5, "context_s": 2.0, "request_s": 2.0, "ramp_s": 2.0}
    return Prior(guess=guess, spread=spread | {"ramp_tokens": 1.0})


def _slope(amounts: pd.Series, seconds: pd.Series) -> float:
    """Seconds a unit, from the least to the largest amount; 0 where that falls, or there is one amount."""
    least, most = amounts.min(), amounts.max()
    if least == most:
        return 0.0
    gain = float(seconds[amounts == most].mean() - seconds[amounts == least].mean())
    return max(gain, 0.0) / float(most - least)

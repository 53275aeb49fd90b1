"""Searching policies: the Pareto front of several objectives, and Optuna over the grids of a study."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.study.study import Family, Objective, Plain
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import make_policy

Floats = NDArray[np.float64]
Evaluate = Callable[[Sequence[Policy]], Sequence[tuple[float, ...]]]
MAX_ASKED = 10  # suggestions for each trial wanted: samplers repeat themselves, and repetitions cost nothing
DIRECTIONS = {
    Objective.SPEED: "maximize",
    Objective.ROLLBACK: "minimize",
    Objective.ENERGY: "minimize",
    Objective.MEMORY: "minimize",
}


def pareto_front(values: Floats, objectives: Sequence[Objective]) -> NDArray[np.bool_]:
    """Which rows of (policies, objectives) no other row beats: at least as good everywhere and better somewhere.

    >>> pareto_front(np.array([[2.0, 5.0], [1.0, 3.0], [1.0, 4.0]]), [Objective.SPEED, Objective.MEMORY]).tolist()
    [True, True, False]
    """
    signs = np.array([-1.0 if DIRECTIONS[objective] == "maximize" else 1.0 for objective in objectives])
    costs = np.nan_to_num(values, nan=np.inf) * signs
    is_best = np.ones(len(costs), dtype=bool)
    for row, cost in enumerate(costs):
        beats = (costs <= cost).all(axis=1) & (costs < cost).any(axis=1)
        is_best[row] = not beats.any()
    return is_best


def search_with_optuna(
    families: Sequence[Family],
    evaluate: Evaluate,
    objectives: Sequence[Objective],
    *,
    kind: Literal["tpe", "nsga2"] = "tpe",
    trials: int = 200,
    batch: int = 20,
    seed: int = 0,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[Policy, tuple[float, ...]]:
    """Values of up to `trials` different policies out of the families' grids, in the order in which they were tried.

    Suggestions are asked for and answered in batches, in a fixed order: the result depends on the seed and the batch, not on
    how many workers evaluate one. Stops early when the grid is used up.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed %= 1 << 32  # what the samplers take
    choices = [family.choices() for family in families]
    num_policies = _grid_size(families, measured)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        sampler: Any
        if kind == "tpe":
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=min(40, max(10, trials // 5)),
            )
        else:
            sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, batch))
    asked = optuna.create_study(directions=[DIRECTIONS[objective] for objective in objectives], sampler=sampler)
    known: dict[Policy, tuple[float, ...]] = {}
    for _ in range(MAX_ASKED * trials // batch + 1):
        if len(known) >= min(trials, num_policies):
            break
        open_trials = [asked.ask() for _ in range(batch)]
        policies = [_suggest(trial, families, choices, measured) for trial in open_trials]
        fresh = list(dict.fromkeys(policy for policy in policies if policy not in known))[: trials - len(known)]
        if fresh:
            known |= dict(zip(fresh, evaluate(fresh), strict=True))
        for trial, policy in zip(open_trials, policies, strict=True):
            if policy in known and np.isfinite(known[policy]).all():
                asked.tell(trial, list(known[policy]))
            else:
                asked.tell(trial, state=optuna.trial.TrialState.FAIL)
    return known


def _suggest(
    trial: Any, families: Sequence[Family], choices: Sequence[Mapping[str, tuple[Plain, ...]]], measured: Any
) -> Policy:
    """One policy of the grids. Every family has its own parameters, numbers as positions in their sorted values, so
    that the sampler knows which are near."""
    index = trial.suggest_categorical("family", list(range(len(families)))) if len(families) > 1 else 0
    settings: dict[str, Any] = {}
    for name, values in choices[index].items():
        parameter = f"{index}.{name}"
        if len(values) == 1:
            settings[name] = values[0]
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            ordered = sorted(values, key=float)
            settings[name] = ordered[trial.suggest_int(parameter, 0, len(ordered) - 1)]
        else:
            settings[name] = trial.suggest_categorical(parameter, list(values))
    family = families[index]
    fixed = dict((measured or {}).get(family.method, {})) if family.is_measured else {}
    return make_policy(family.method, fixed | settings)


def _grid_size(families: Sequence[Family], measured: Mapping[str, Mapping[str, Any]] | None) -> int:
    return len({policy for family in families for policy in family.policies((measured or {}).get(family.method))})

"""The choice of each method's settings for one pair, on the simulator: by search, or (`auto`) from a short list."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from analysis.tuning.families import families
from analysis.tuning.measured import Measured
from analysis.tuning.search import MAX_TRIED, Axis, Chosen, Family, tune
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.latency.base import LatencyModel
from sim.sweep.lockstep import TraceArrays
from sim.sweep.sweep import sweep
from traces.progress import Report, silent
from traces.schema import RequestTrace

AUTO_TRIED = 120  # policies of a family, for a choice in a moment
_CONTAINED = {
    "specbranch without H-RAD": ("pearl",),
    "specbranch without branches and H-RAD": ("pearl",),
    "specbranch without H-RAD, fixed count": ("pearl",),
    "outcome_hedging": ("fixed_length", "pearl", "saguaro", "specbranch without H-RAD"),
}
WITH_CLASSES, WITHOUT_CLASSES = "specbranch", "specbranch without H-RAD"
_BY_CLASSES = (WITH_CLASSES, "specbranch without branches")
LOOKUP_LENGTHS = (1, 2, 3, 4, 6, 8, 10)


def choose_policies(
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    max_tried: int = MAX_TRIED,
    names: Collection[str] | None = None,
    progress: Report = silent,
) -> dict[str, Chosen]:
    """The fastest policy of each family on traces of one temperature, each with the same effort.

    max_tried: policies of a family whose speeds are predicted, starts apart. What a method contains is among its starts, so
    that it is never behind it: PEARL in SpecBranch, all of them in outcome hedging, which comes last. names: families that
    are wanted, None for all; those of the main ones that they contain are chosen, too.
    """
    measure = measure_on(traces, latency)
    every = families(Measured.of(traces, latency))
    if names is not None:
        wanted = {*names, *(inner for name in names for inner in _CONTAINED.get(name, ()))}
        every = {name: family for name, family in every.items() if name in wanted}
    chosen: dict[str, Chosen] = {}
    for index, (name, family) in enumerate(every.items()):
        family = with_contained(family, [choice.policy for choice in chosen.values()])
        chosen[name] = tune(family, measure, max_tried=max_tried)
        progress(index + 1, len(every))
    return chosen


def without_losing_predictor(chosen: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """The same choices, less those with H-RAD's classes where SpecBranch is predicted no faster with them than without; the
    remark of the choice that stays says so."""
    told, alone = (chosen.get(name) for name in (WITH_CLASSES, WITHOUT_CLASSES))
    if told is None or alone is None or told.tokens_per_s > alone.tokens_per_s:
        return dict(chosen)
    remark = (
        f"the H-RAD predictor is left out: with it SpecBranch is predicted at {told.tokens_per_s:.1f} tokens/s, without it at "
        f"{alone.tokens_per_s:.1f}."
    )
    kept = {name: choice for name, choice in chosen.items() if name not in _BY_CLASSES}
    return kept | {WITHOUT_CLASSES: replace(alone, remark=remark)}


def choose_lookup(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report = silent
) -> dict[str, Chosen]:
    """Prompt lookup at the longest draft with the highest predicted speed, on traces of a lookup, and the baseline."""
    lengths = Axis.of("max_length", LOOKUP_LENGTHS)
    starts = {"autoregressive": (Autoregressive(),), "prompt_lookup": tuple(map(PromptLookup, LOOKUP_LENGTHS))}
    measure = measure_on(traces, latency)
    chosen = {
        name: tune(Family(starts=policies, axes=(lengths,) if name == "prompt_lookup" else ()), measure)
        for name, policies in starts.items()
    }
    progress(1, 1)
    return chosen


def with_contained(family: Family, others: Sequence[Policy]) -> Family:
    """A family with the choices of methods that it contains among its starts."""
    reduced = [contained_in(family.starts[0], policy) for policy in others]
    return replace(family, starts=(*family.starts, *(policy for policy in reduced if policy is not None)))


def contained_in(container: Policy, policy: Policy) -> Policy | None:
    """The same rounds as a policy of the container's kind; None where there are none. SpecBranch contains PEARL where
    confidence decides: one branch, a window without a threshold, and pre-verification after a miss."""
    kind = type(container)
    if isinstance(container, SpecBranch):
        if not isinstance(policy, Pearl) or container.uses_hrad or policy.draft_length < 2:
            return None
        return replace(
            container,
            draft_length=policy.draft_length - 1,
            max_branches=1,
            epsilon=0.0,
            on_miss=OnMiss.OVERLAP,
            prior_length=0,
        )
    reduced = as_outcome_hedging(policy)
    return reduced if type(reduced) is kind else None


def measure_on(traces: Sequence[RequestTrace], latency: LatencyModel) -> partial[NDArray[np.float64]]:
    """(policies) -> (policies,) predicted tokens/s on these traces."""
    return partial(_speeds, traces=traces, latency=latency, arrays=TraceArrays(traces))


def _speeds(
    policies: Sequence[Policy], traces: Sequence[RequestTrace], latency: LatencyModel, arrays: TraceArrays
) -> NDArray[np.float64]:
    return sweep(policies, traces, latency, arrays=arrays).decode_tokens_per_s

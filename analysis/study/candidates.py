"""Candidates: for each method the grid from which a pair's own settings are chosen on the simulator, and the choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.latency.base import LatencyModel
from sim.sweep.sweep import sweep
from traces.fits.signals import fit_ranks, fit_signal
from traces.progress import Report, silent
from traces.schema import Actor, OpKind, OpShape, RequestTrace

TYPICAL_SPEEDUP = 1.5  # tokens in the time of a target forward, in what a verified token has to be worth
TEXTBOOK_LONGEST = 16
TEXTBOOK_BRANCHES = 4  # of SpecBranch; the published code has 3

# What a recording runs, as labels. The first ones calibrate the draft's batched forwards beside its single ones, and the
# target's at every width.
CALIBRATION_POLICIES = (
    "autoregressive",
    "probe",
    "saguaro:draft_length=3,fan_out=3",
    "outcome_hedging:slope=0,intercept=0.4,draft_length=4,max_branches=24,least_reach=0",
)
HRAD_CALIBRATION_POLICIES = ("specbranch:draft_length=3,max_branches=2",)  # what the predictions take
LOOKUP_CALIBRATION_POLICIES = ("autoregressive", "prompt_lookup:max_length=10")


@dataclass(frozen=True)
class CostRatios:
    """Costs in units of one target forward over one token: a draft forward, and each further token that the target
    verifies, at the margin, where kernels have switched to several tokens."""

    draft: float
    marginal_verify: float


def cost_ratios(latency: LatencyModel, context_tokens: int) -> CostRatios:
    """Cost ratios of a pair at a context length."""

    def seconds(actor: Actor, kind: OpKind, tokens: int) -> float:
        return latency.mean_s(OpShape(actor, kind, tokens, 1, context_tokens))

    target = seconds(Actor.TARGET, OpKind.VERIFY, 1)
    margin = (seconds(Actor.TARGET, OpKind.VERIFY, 9) - seconds(Actor.TARGET, OpKind.VERIFY, 4)) / 5
    return CostRatios(seconds(Actor.DRAFT, OpKind.DRAFT, 1) / target, max(0.0, margin / target))


def typical_context(traces: Sequence[RequestTrace]) -> int:
    """Tokens in the cache half-way through a mean request."""
    return int(sum(trace.num_prompt_tokens + trace.num_tokens / 2 for trace in traces) / len(traces))


def measured_settings(traces: Sequence[RequestTrace], latency: LatencyModel) -> dict[str, Any]:
    """Settings of policies that follow from measurements at the traces' one temperature: the acceptance curve of the noisy
    margin, the rank law, and how likely a further verified token has to be, so that it is worth its time."""
    margin, ranks = fit_signal(traces, "margin"), fit_ranks(traces)
    costs = cost_ratios(latency, typical_context(traces))
    return {
        "guess_by": ConfidenceSignal.MARGIN,
        "intercept": round(float(margin.intercept), 4),
        "slope": round(float(margin.slope), 4),
        "least_reach": round(TYPICAL_SPEEDUP * costs.marginal_verify, 3),
        "acceptance": round(min(0.95, float(margin.acceptance)), 3),
        "rank_decay": round(float(ranks.decay), 3),
    }


def default_grid(longest: int = 8) -> list[Policy]:
    """What is explored when nobody says what: some methods over draft lengths and thresholds."""
    lengths = range(1, longest + 1)
    stops = [ConfidenceStop(threshold, length) for length in (4, 6, 8) for threshold in (0.2, 0.4, 0.6, 0.8)]
    return [Autoregressive(), *map(FixedLength, lengths), *stops, *map(Pearl, range(2, longest + 5))]


def validated_policies(draft_lengths: Sequence[int] = (2, 4), pearl_lengths: Sequence[int] = (6,)) -> list[Policy]:
    """What is run for real when nobody says what."""
    return [Autoregressive(), *map(FixedLength, draft_lengths), *map(Pearl, pearl_lengths)]


def mapped_policies() -> list[Policy]:
    """Those of the simulated break-even map, without H-RAD: a map's traces hold no classes."""
    return [
        Autoregressive(),
        *map(FixedLength, (1, 2, 3, 4, 6, 8)),
        *map(Pearl, (2, 3, 4, 6, 8, 12)),
        *map(Saguaro, (2, 4, 6, 8)),
        *(SpecBranch(length, uses_hrad=False) for length in (2, 4, 6, 8)),
    ]


def grid(kind: type[Any], **choices: Sequence[Any]) -> list[Policy]:
    """A policy for every combination of settings, the last one changing fastest.

    >>> [policy.draft_length for policy in grid(Saguaro, draft_length=(1, 2), fan_out=(2, 3))]
    [1, 1, 2, 2]
    """
    return [kind(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def family_grids(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, with_classes: bool = False, is_small: bool = False
) -> Mapping[str, list[Policy]]:
    """Policies to try for each family at the traces' one temperature. Settings that follow from measurements are measured;
    the rest is a grid, thinned if is_small. with_classes: the traces hold H-RAD's classes."""
    depth = min(trace.tail_depth for trace in traces)
    costs, measured = cost_ratios(latency, typical_context(traces)), measured_settings(traces, latency)
    reach = max(2, round(1 / costs.draft))
    shares = (0.5, 0.75, 1.0) if is_small else (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2)
    pearl_lengths = sorted({max(2, round(reach * share)) for share in shares})
    # No further than tails were recorded; a window of one token is what pays where verification widens dearly.
    windows = sorted({1} | {min(length, depth - 1) for length in pearl_lengths})
    return {
        "autoregressive": [Autoregressive()],
        **_serial_grids(measured, is_small),
        "pearl": grid(Pearl, draft_length=pearl_lengths),
        "saguaro": grid(
            Saguaro,
            draft_length=(1, 3) if is_small else (1, 2, 3, 4, 5),
            fan_out=(2, 3) if is_small else (1, 2, 3),
            acceptance=(measured["acceptance"],),
            spread=(FanOut.GEOMETRIC,) if is_small else (FanOut.GEOMETRIC, FanOut.UNIFORM),
        ),
        **_specbranch_grids(windows, with_classes, is_small),
        "outcome_hedging": _outcome_grid(traces, costs, measured, is_small),
    }


def _serial_grids(measured: Mapping[str, Any], is_small: bool) -> dict[str, list[Policy]]:
    """Methods that draft while the target waits."""
    return {
        "fixed_length": grid(FixedLength, draft_length=(2, 3, 4) if is_small else (1, 2, 3, 4, 5, 6, 8)),
        "confidence_stop": grid(
            ConfidenceStop,
            threshold=(0.5, 1.0) if is_small else (0.25, 0.5, 1.0, 1.5),
            max_length=(4, 6),
            signal=(ConfidenceSignal.MARGIN,),
        ),
        "adaedl": grid(
            AdaEdl,
            threshold=(0.2, 0.4) if is_small else (0.1, 0.2, 0.3, 0.4, 0.5),
            max_length=(4,) if is_small else (3, 4, 6),
        ),
        "product_rule": grid(
            ProductRule,
            intercept=(measured["intercept"],),
            slope=(measured["slope"],),
            threshold=(0.6,) if is_small else (0.4, 0.5, 0.6, 0.7, 0.8),
            max_length=(6,) if is_small else (4, 6),
        ),
    }


def _outcome_grid(
    traces: Sequence[RequestTrace], costs: CostRatios, measured: Mapping[str, Any], is_small: bool
) -> list[Policy]:
    """Outcome hedging, with the curve of the noisy margin or with a constant acceptance."""
    curve = {"intercept": (measured["intercept"],), "slope": (measured["slope"],)}
    rate = float(fit_signal(traces, "margin").acceptance)
    constant = {"intercept": (round(math.log(rate / (1 - rate)), 4),), "slope": (0.0,)} if 0 < rate < 1 else curve
    # Further verified tokens are free, or have their marginal price once or twice.
    price = TYPICAL_SPEEDUP * costs.marginal_verify
    rest = {
        "rank_decay": (measured["rank_decay"],),
        "draft_length": (1, 3) if is_small else (1, 2, 3, 4, 5, 6, 8),
        "max_branches": (3, 8) if is_small else (2, 3, 4, 8, 12, 16, 24),
        "serial_length": (0, 2) if is_small else (0, 1, 3),
        "least_reach": sorted({round(share * price, 3) for share in ((1,) if is_small else (0, 1, 2))}),
    }
    return [*grid(OutcomeHedging, **curve, **rest), *grid(OutcomeHedging, **constant, **rest)]


def _specbranch_grids(lengths: Sequence[int], with_classes: bool, is_small: bool) -> dict[str, list[Policy]]:
    """SpecBranch and its ablations, each with the same grid."""
    rules = [(ConfidenceSignal.MAX_PROB, epsilon) for epsilon in ((0.3,) if is_small else (0.0, 0.1, 0.3, 0.5))]
    rules += [(ConfidenceSignal.MARGIN, epsilon) for epsilon in ((0.6,) if is_small else (0.3, 0.6, 1.0))]
    serial = [(OnMiss.SERIAL, prior) for prior in ((3,) if is_small else (2, 4))]

    def windows(counts: Sequence[int], **fixed: bool) -> list[Policy]:
        return [
            SpecBranch(length, count, epsilon, on_miss=on_miss, prior_length=prior, signal=signal, **fixed)
            for length in (lengths[:3] if is_small else lengths)
            for signal, epsilon in rules
            for on_miss, prior in (*serial, (OnMiss.OVERLAP, 0))
            for count in counts
        ]

    counts = (4,) if is_small else (2, 3, 4, 8)
    full = {"specbranch": windows(counts, uses_hrad=True), "specbranch without branches": windows((1,), uses_hrad=True)}
    return (full if with_classes else {}) | {
        "specbranch without H-RAD": windows(counts, uses_hrad=False),
        "specbranch without branches and H-RAD": windows((1,), uses_hrad=False),
        "specbranch without H-RAD, fixed count": windows(counts, uses_hrad=False, is_fixed_count=True),
    }


def textbook_policies(alpha: float, ratios: Sequence[float]) -> list[Policy]:
    """Every method but DSI where a constant acceptance and cost ratios are all that is known, at draft lengths around each
    ratio. Rules that stop by confidence are left out: no token is surer than another, and they draft a fixed length."""
    reaches = sorted({max(1, round(ratio)) for ratio in ratios})
    windows = sorted({min(TEXTBOOK_LONGEST, max(1, reach + more)) for reach in reaches for more in (-2, -1, 0)})
    acceptance = round(float(min(max(alpha, 0.01), 0.99)), 3)
    policies: list[Policy] = [
        Autoregressive(),
        *map(FixedLength, range(1, TEXTBOOK_LONGEST + 1)),
        *(Pearl(min(TEXTBOOK_LONGEST, reach)) for reach in reaches),
        *(
            policy
            for length in windows
            for policy in _known_windows(length, (1, 3, length), epsilon=0.0, is_fixed_count=True)
        ),
        *grid(
            Saguaro,
            draft_length=range(1, min(TEXTBOOK_LONGEST, reaches[-1]) + 1),
            fan_out=(3,),
            acceptance=(acceptance,),
        ),
        *grid(
            OutcomeHedging,
            intercept=(round(math.log(acceptance / (1 - acceptance)), 4),),
            slope=(0.0,),
            least_reach=(0.0,),
            rank_decay=(0.5,),
            draft_length=sorted({min(TEXTBOOK_LONGEST, max(1, reach - 1)) for reach in reaches}),
            max_branches=(8, 24),
            serial_length=(0, 3),
        ),
    ]
    return list(dict.fromkeys(policies))


def clairvoyant_policies(cost_ratio: float) -> list[Policy]:
    """SpecBranch for traces whose signals tell every wrong token, at windows around a cost ratio."""
    reach = max(2, round(cost_ratio))
    return [
        policy
        for length in (reach - 1, reach)
        for policy in _known_windows(length, (1, 3, length), epsilon=0.5, is_fixed_count=False)
    ]


def _known_windows(length: int, priors: Sequence[int], *, epsilon: float, is_fixed_count: bool) -> list[Policy]:
    """SpecBranch without H-RAD with one window, overlapping after a miss or drafting so many tokens serially."""
    misses = [(OnMiss.OVERLAP, 0), *((OnMiss.SERIAL, prior) for prior in priors)]
    return [
        SpecBranch(
            length,
            TEXTBOOK_BRANCHES,
            epsilon,
            uses_hrad=False,
            is_fixed_count=is_fixed_count,
            on_miss=on_miss,
            prior_length=prior,
        )
        for on_miss, prior in misses
    ]


def fastest(policies: Sequence[Policy], traces: Sequence[RequestTrace], latency: LatencyModel) -> Policy:
    """The policy with the highest predicted speed on traces of one temperature; the first of equals."""
    return policies[int(np.argmax(sweep(policies, traces, latency).decode_tokens_per_s))]


def choose_policies(
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    with_classes: bool = False,
    is_small: bool = False,
    progress: Report = silent,
) -> dict[str, Policy]:
    """The fastest policy of each family on traces of one temperature. Outcome hedging comes last, and the choices of the
    methods that it contains are among its candidates, so that it is never behind one of them."""
    grids = family_grids(traces, latency, with_classes=with_classes, is_small=is_small)
    chosen: dict[str, Policy] = {}
    for index, (family, policies) in enumerate(grids.items()):
        if family == "outcome_hedging":
            reduced = map(as_outcome_hedging, chosen.values())
            policies = [*policies, *(policy for policy in reduced if policy is not None)]
        chosen[family] = fastest(policies, traces, latency)
        progress(index + 1, len(grids))
    return chosen


def choose_lookup(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report = silent
) -> dict[str, Policy]:
    """Prompt lookup at the longest draft with the highest predicted speed, on traces of a lookup, and the baseline."""
    chosen = fastest([PromptLookup(length) for length in (1, 2, 3, 4, 6, 8, 10)], traces, latency)
    progress(1, 1)
    return {"autoregressive": Autoregressive(), "prompt_lookup": chosen}

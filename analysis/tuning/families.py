"""What each method may be set to on one pair: starts that follow from measured costs, and the axes along which to widen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.tuning.measured import Measured
from analysis.tuning.search import Axis, Family
from sim.decoding.policies.overlapped.outcome_hedging import Choice, OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule

_BRANCHES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
_FANOUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_REACHES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # `least_reach`
_TENTHS = tuple(round(0.05 * step, 2) for step in range(21))
_NEVER = (ConfidenceSignal.MAX_PROB, 0.0)  # a rule that no token breaks
AS_MANY_AS_TRIED = "more was not tried"


def grid(kind: type[Any], **choices: Sequence[Any]) -> list[Any]:
    """A policy for every combination of settings, the last one changing fastest.

    >>> [policy.draft_length for policy in grid(Saguaro, draft_length=(1, 2), fan_out=(2, 3))]
    [1, 1, 2, 2]
    """
    return [kind(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def families(measured: Measured) -> dict[str, Family]:
    """Every method that the traces can answer for, and SpecBranch's ablations; what contains another one comes after it."""
    found = {"autoregressive": Family(starts=(Autoregressive(),)), "fixed_length": fixed_length(measured)}
    if measured.tail_depth:
        found |= {
            "confidence_stop": confidence_stop(measured),
            "adaedl": adaedl(measured),
            "product_rule": product_rule(measured),
        }
    found["pearl"] = pearl(measured)
    if measured.num_ranks > 1:
        found["saguaro"] = saguaro(measured)
    if measured.tail_depth > 1:
        if measured.has_classes and measured.class_window < measured.tail_depth:
            found["specbranch"] = specbranch(measured, uses_hrad=True)
            found["specbranch without branches"] = specbranch(measured, uses_hrad=True, has_branches=False)
        found["specbranch without H-RAD"] = specbranch(measured)
        found["specbranch without branches and H-RAD"] = specbranch(measured, has_branches=False)
        found["specbranch without H-RAD, fixed count"] = specbranch(measured, is_fixed_count=True)
        found["outcome_hedging"] = outcome_hedging(measured)
    return {name: replace(family, is_allowed=measured.answers) for name, family in found.items()}


def fixed_length(measured: Measured) -> Family:
    """Speculative sampling."""
    lengths = _lengths(measured)
    starts = grid(FixedLength, draft_length=_near(lengths, measured.serial_length))
    return Family(starts=tuple(starts), axes=(_length_axis("draft_length", lengths),))


def confidence_stop(measured: Measured) -> Family:
    """Rules of a threshold on one signal."""
    lengths = _lengths(measured, depth=measured.tail_depth + 1)
    rules = _rules(measured, "threshold")
    starts = [
        ConfidenceStop(threshold, length, signal)
        for signal, threshold in _first_rules(measured)
        for length in _near(lengths, measured.serial_length, 2 * measured.serial_length)
    ]
    return Family(starts=tuple(starts), axes=(*rules, _length_axis("max_length", lengths, measured)))


def adaedl(measured: Measured) -> Family:
    """The entropy bound."""
    lengths = _lengths(measured, depth=measured.tail_depth)
    starts = grid(
        AdaEdl, threshold=(0.1, 0.3, 0.5), max_length=_near(lengths, measured.serial_length, 2 * measured.serial_length)
    )
    # Below every bound it never stops: 1 - sqrt(0.2 H) is above -1 for any law of fewer than e^20 tokens.
    return Family(
        starts=tuple(starts),
        axes=(Axis.of("threshold", (-1.0, *_TENTHS)), _length_axis("max_length", lengths, measured)),
    )


def product_rule(measured: Measured) -> Family:
    """SpecDec++ with the margin's curve."""
    lengths = _lengths(measured, depth=measured.tail_depth)
    intercept, slope = measured.curve
    starts = grid(
        ProductRule,
        intercept=(intercept,),
        slope=(slope,),
        threshold=(0.4, 0.6, 0.8),
        max_length=_near(lengths, measured.serial_length, 2 * measured.serial_length),
    )
    return Family(
        starts=tuple(starts), axes=(Axis.of("threshold", _TENTHS), _length_axis("max_length", lengths, measured))
    )


def pearl(measured: Measured) -> Family:
    """PEARL: windows around c."""
    lengths = _lengths(measured)
    starts = grid(Pearl, draft_length=_near(lengths, *_shares(measured.reach(1)), measured.reach(1) + 1))
    return Family(starts=tuple(starts), axes=(_length_axis("draft_length", lengths),))


def saguaro(measured: Measured) -> Family:
    """SSD: fan-outs within the ranks that are known."""
    lengths = _lengths(measured)
    fan_outs = tuple(fan_out for fan_out in _FANOUTS if fan_out < measured.num_ranks)
    starts = [
        Saguaro(length, fan_out, FanOut.GEOMETRIC, _acceptance(measured))
        for fan_out in fan_outs[:3]
        for length in _near(lengths, measured.serial_length, *_shares(measured.reach(fan_out * measured.serial_length)))
    ]
    axes = (
        _length_axis("draft_length", lengths),
        Axis.of("fan_out", fan_outs, limit=AS_MANY_AS_TRIED),
        Axis.of("spread", tuple(FanOut), is_choice=True),
    )
    return Family(starts=tuple(starts), axes=axes)


def specbranch(
    measured: Measured, *, uses_hrad: bool = False, has_branches: bool = True, is_fixed_count: bool = False
) -> Family:
    """SpecBranch or one of its ablations: a window for each number of branches, floor(c / t'(k)) less the look; after a miss
    speculative sampling's own length, half of it, or none."""
    lengths = priors = _lengths(measured, depth=measured.tail_depth - 1)
    limit = _why(lengths, measured)
    if uses_hrad and measured.class_window:  # the predictor's classes speak of one window
        lengths, priors = (measured.class_window,), tuple(range(1, measured.class_window + 1))
        limit = f"the H-RAD predictor speaks of {measured.class_window} draft tokens"
    counts = tuple(count for count in _BRANCHES if count <= measured.num_ranks) if has_branches else (1,)
    misses = [(OnMiss.OVERLAP, 0), *((OnMiss.SERIAL, length) for length in priors)]
    serial = _near(priors, measured.serial_length, measured.serial_length // 2)
    starts = [
        SpecBranch(
            length,
            count,
            epsilon,
            uses_hrad=uses_hrad,
            is_fixed_count=is_fixed_count,
            on_miss=on_miss,
            prior_length=prior,
            signal=signal,
        )
        for count in counts
        if count in (1, 2, 4, 8, 16)
        # A draft that is sure of itself has one branch, however many it may have.
        for length in _near(lengths, *(measured.reach(rows) - 1 for rows in {count, count if is_fixed_count else 1}))
        for signal, epsilon in _first_rules(measured)
        for on_miss, prior in ((OnMiss.OVERLAP, 0), *((OnMiss.SERIAL, prior) for prior in serial))
    ]
    axes = (
        _length_axis("draft_length", lengths, measured),
        Axis.of("max_branches", counts, limit=AS_MANY_AS_TRIED),
        Axis(settings=("on_miss", "prior_length"), values=tuple(misses), limit=limit),
        *_rules(measured, "epsilon"),
    )
    return Family(starts=tuple(starts), axes=axes)


def outcome_hedging(measured: Measured) -> Family:
    """Ours, with the margin's curve or a constant acceptance; further verified tokens free, or at their price."""
    lengths = (0, *_lengths(measured, depth=measured.tail_depth - 1))
    counts = tuple(count for count in _BRANCHES if count < measured.num_ranks)
    curves = tuple(dict.fromkeys((measured.curve, measured.constant_curve)))
    starts = [
        OutcomeHedging(
            intercept=intercept,
            slope=slope,
            draft_length=length,
            max_branches=count,
            serial_length=serial,
            least_reach=0.0,
            rank_decay=measured.rank_decay,
        )
        for intercept, slope in curves
        for count in counts
        if count in (1, 4, 8, 16)
        for length in _near(lengths, measured.reach(count) - 1)
        for serial in _near(lengths, 0, measured.serial_length)
    ]
    choices = tuple((hedges, measured.rank_decay) for hedges in (Choice.HEAVIEST, Choice.UNIFORM, Choice.FRONTIER))
    axes = (
        _length_axis("draft_length", lengths, measured),
        Axis.of("max_branches", counts, limit=AS_MANY_AS_TRIED),
        Axis(settings=("hedges", "rank_decay"), values=choices, is_choice=True),
        _length_axis("serial_length", lengths, measured),
        Axis.of("least_reach", _REACHES),
        Axis(settings=("intercept", "slope"), values=curves, is_choice=True),
    )
    return Family(starts=tuple(starts), axes=axes)


def _lengths(measured: Measured, *, depth: int | None = None) -> tuple[int, ...]:
    """1 to the longest draft that is tried; no longer than tails were recorded, where the method looks at them."""
    longest = measured.longest if depth is None else max(1, min(measured.longest, depth))
    return tuple(range(1, longest + 1))


def _why(lengths: Sequence[int], measured: Measured | None) -> str:
    """Why the last length is the last."""
    if measured is None or lengths[-1] >= measured.longest:
        return AS_MANY_AS_TRIED
    return f"{measured.tail_depth} draft tokens after a wrong one were recorded, no more (--tail-depth)"


def _length_axis(setting: str, lengths: Sequence[int], measured: Measured | None = None) -> Axis:
    return Axis.of(setting, lengths, limit=_why(lengths, measured))


def _near(lengths: Sequence[int], *wanted: float) -> list[int]:
    """The lengths closest to those that are wanted, each once."""
    return sorted({min(lengths, key=lambda length: abs(length - wish)) for wish in wanted})


def _shares(reach: int) -> tuple[float, ...]:
    return (0.5 * reach, 0.75 * reach, float(reach))


def _acceptance(measured: Measured) -> float:
    return min(0.95, round(measured.alpha, 3))


def _first_rules(measured: Measured) -> list[tuple[ConfidenceSignal, float]]:
    """Rules to start from: none, and the margin below which the least sure tenth or quarter of the tokens is."""
    margins = measured.thresholds[ConfidenceSignal.MARGIN]
    return [_NEVER, *((ConfidenceSignal.MARGIN, margins[min(step, len(margins) - 1)]) for step in (2, 5))]


def _rules(measured: Measured, setting: str) -> tuple[Axis, ...]:
    """An axis of thresholds for each signal, from none on."""
    return tuple(
        Axis(settings=("signal", setting), values=((signal, 0.0), *((signal, value) for value in values if value > 0)))
        for signal, values in measured.thresholds.items()
    )

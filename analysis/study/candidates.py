"""Families of policies: for each method the grid from which a pair's own settings are chosen on the simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.latency.base import LatencyModel, OpShape
from traces.fits.signals import fit_ranks, fit_signal
from traces.schema import RequestTrace

TYPICAL_SPEEDUP = 1.5  # tokens in the time of a target forward, in what a verified token has to be worth


@dataclass(frozen=True)
class CostRatios:
    """Costs in units of one target forward over one token: a draft forward, and each further token that the target
    verifies, at the margin, where kernels have switched to several tokens."""

    draft: float
    marginal_verify: float


def cost_ratios(latency: LatencyModel, context_tokens: int) -> CostRatios:
    """Cost ratios of a pair at a context length."""

    def seconds(actor: str, kind: str, tokens: int) -> float:
        return latency.mean_s(OpShape(actor, kind, tokens, 1, context_tokens))

    target = seconds("target", "verify", 1)
    margin = (seconds("target", "verify", 9) - seconds("target", "verify", 4)) / 5
    return CostRatios(seconds("draft", "draft", 1) / target, max(0.0, margin / target))


def default_grid(longest: int = 8) -> list[str]:
    """Labels of the methods over draft lengths and thresholds."""
    lengths = range(1, longest + 1)
    return [
        "autoregressive",
        *(f"fixed_length:draft_length={length}" for length in lengths),
        *(
            f"confidence_stop:threshold={threshold},max_length={length}"
            for length in (4, 6, 8)
            for threshold in (0.2, 0.4, 0.6, 0.8)
        ),
        *(f"pearl:draft_length={length}" for length in range(2, longest + 5, 1)),
    ]


def family_grids(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, with_classes: bool = False, is_small: bool = False
) -> Mapping[str, list[str]]:
    """Labels to try for each family at the traces' one temperature. Settings that follow from measurements (costs, the
    acceptance curve of the noisy margin, the rank law) are measured; the rest is a grid, thinned if is_small."""
    depth = min(trace.tail_depth for trace in traces)
    context = int(sum(trace.num_prompt_tokens + trace.num_tokens / 2 for trace in traces) / len(traces))
    costs = cost_ratios(latency, context)
    margin, ranks = fit_signal(traces, "margin"), fit_ranks(traces)
    rate = margin.acceptance
    curve = f"intercept={margin.intercept:.4f},slope={margin.slope:.4f}"
    constant = f"intercept={math.log(rate / (1 - rate)):.4f},slope=0" if 0 < rate < 1 else curve
    reach = max(2, round(1 / costs.draft))
    lengths = (2, 3, 4) if is_small else (1, 2, 3, 4, 5, 6, 8)
    pearl_lengths = sorted(
        {
            max(2, round(reach * share))
            for share in ((0.5, 0.75, 1.0) if is_small else (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2))
        }
    )
    thresholds = (0.5, 1.0) if is_small else (0.25, 0.5, 1.0, 1.5)
    grids = {
        "autoregressive": ["autoregressive"],
        "fixed_length": [f"fixed_length:draft_length={length}" for length in lengths],
        "confidence_stop": [
            f"confidence_stop:threshold={threshold},max_length={length},signal=margin"
            for threshold in thresholds
            for length in (4, 6)
        ],
        "adaedl": [
            f"adaedl:threshold={threshold},max_length={length}"
            for threshold in ((0.2, 0.4) if is_small else (0.1, 0.2, 0.3, 0.4, 0.5))
            for length in ((4,) if is_small else (3, 4, 6))
        ],
        "product_rule": [
            f"product_rule:{curve},threshold={threshold},max_length={length}"
            for threshold in ((0.6,) if is_small else (0.4, 0.5, 0.6, 0.7, 0.8))
            for length in ((6,) if is_small else (4, 6))
        ],
        "pearl": [f"pearl:draft_length={length}" for length in pearl_lengths],
        "saguaro": [
            f"saguaro:draft_length={length},fan_out={fan_out},acceptance={min(0.95, rate):.3f},spread={spread}"
            for length in ((1, 3) if is_small else (1, 2, 3, 4, 5))
            for fan_out in ((2, 3) if is_small else (1, 2, 3))
            for spread in (("geometric",) if is_small else ("geometric", "uniform"))
        ],
    }
    # No further than tails were recorded; a window of one token is what pays where verification widens dearly.
    windows = sorted({1} | {min(length, depth - 1) for length in pearl_lengths})
    grids |= _specbranch_grids(windows, with_classes, is_small)
    # Further verified tokens are free, or have their marginal price once or twice.
    price = TYPICAL_SPEEDUP * costs.marginal_verify
    reaches = sorted({round(share * price, 3) for share in ((1,) if is_small else (0, 1, 2))})
    grids["outcome_hedging"] = [
        f"outcome_hedging:{guess},rank_decay={ranks.decay:.3f},draft_length={length},max_branches={branches},"
        f"serial_length={serial},least_reach={least}"
        for guess in (curve, constant)
        for length in ((1, 3) if is_small else (1, 2, 3, 4, 5, 6, 8))
        for branches in ((3, 8) if is_small else (2, 3, 4, 8, 12, 16, 24))
        for serial in ((0, 2) if is_small else (0, 1, 3))
        for least in reaches
    ]
    return grids


def _specbranch_grids(lengths: Sequence[int], with_classes: bool, is_small: bool) -> dict[str, list[str]]:
    """SpecBranch and its ablations, each with the same grid."""
    rules = [("max_prob", epsilon) for epsilon in ((0.3,) if is_small else (0.0, 0.1, 0.3, 0.5))]
    rules += [("margin", epsilon) for epsilon in ((0.6,) if is_small else (0.3, 0.6, 1.0))]
    grid = [
        f"draft_length={length},epsilon={epsilon},signal={signal},on_miss={on_miss},prior_length={prior}"
        for length in (lengths[:3] if is_small else lengths)
        for signal, epsilon in rules
        for on_miss, prior in (
            (("serial", 3), ("overlap", 0)) if is_small else (("serial", 2), ("serial", 4), ("overlap", 0))
        )
    ]
    counts = (4,) if is_small else (2, 3, 4, 8)
    found = {
        "specbranch without H-RAD": [
            f"specbranch:{text},max_branches={count},uses_hrad=false" for text in grid for count in counts
        ],
        "specbranch without branches and H-RAD": [f"specbranch:{text},max_branches=1,uses_hrad=false" for text in grid],
        "specbranch without H-RAD, fixed count": [
            f"specbranch:{text},max_branches={count},uses_hrad=false,is_fixed_count=true"
            for text in grid
            for count in counts
        ],
    }
    if with_classes:
        found = {
            "specbranch": [
                f"specbranch:{text},max_branches={count},uses_hrad=true" for text in grid for count in counts
            ],
            "specbranch without branches": [f"specbranch:{text},max_branches=1,uses_hrad=true" for text in grid],
        } | found
    return found

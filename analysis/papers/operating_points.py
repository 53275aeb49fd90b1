"""Published operating points: speed ratio, the acceptance that a reported speed-up implies, and what was reported there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.optimize import brentq

from sim.decoding.closed_forms import pearl_tokens_per_step, sps_speedup

# SpecBranch, arXiv:2506.01979, main table: speed-ups over autoregressive decoding at temperature 0, (PEARL, SpecBranch). The
# rows of speculative sampling, AdaEDL and Lookahead could not be recovered. c is not reported: PEARL's draft length, which
# it sets to the speed ratio, stands for it.
_PAIRS: Mapping[tuple[str, int], Mapping[str, tuple[float, float]]] = {
    ("LLaMA 68M & 7B", 7): {"HumanEval": (1.69, 2.04), "GSM8K": (1.86, 2.12), "CNN/DM": (1.66, 1.87)},
    ("Vicuna 68M & 13B", 8): {"HumanEval": (2.02, 2.47), "GSM8K": (1.61, 1.95), "CNN/DM": (1.68, 1.89)},
    ("Deepseek 1.3B & 33B", 5): {"HumanEval": (3.39, 3.71), "GSM8K": (2.78, 3.02), "CNN/DM": (2.63, 2.97)},
    ("LLaMA-3.1 8B & 70B", 5): {"HumanEval": (3.75, 4.02), "GSM8K": (3.35, 3.67), "CNN/DM": (3.04, 3.37)},
}
# SSD, arXiv:2603.03251: tokens/s of (autoregressive, speculative sampling, SSD), batch 1, temperature 0, means over four data
# sets; drafts of 6 tokens in its benchmarks, outcomes predicted "up to 90%" of the time.
_SSD_PAIRS: Mapping[str, tuple[float, float, float]] = {
    "Llama-3.2 1B & 3.1 70B": (54.7, 161.8, 255.8),
    "Qwen3 0.6B & 32B": (88.8, 136.8, 203.8),
}
SSD_DRAFT_LENGTH, SSD_HIT_RATE = 6, 0.9


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """cost_ratio: target forward / draft forward. alpha: acceptance implied by what was reported. reported: speed-up over
    autoregressive decoding by method. implied_by: which of these the point was worked out from, so that they are no test.
    """

    pair: str
    dataset: str
    cost_ratio: float
    alpha: float
    reported: Mapping[str, float]
    implied_by: tuple[str, ...]


def published_points() -> list[OperatingPoint]:
    """All of them, pair by pair."""
    points = [
        OperatingPoint(
            pair=pair,
            dataset=dataset,
            cost_ratio=float(gamma),
            alpha=alpha_of_pearl(pearl, gamma),
            reported={"pearl": pearl, "specbranch": specbranch},
            implied_by=("pearl",),
        )
        for (pair, gamma), datasets in _PAIRS.items()
        for dataset, (pearl, specbranch) in datasets.items()
    ]
    for pair, (plain, serial, cached) in _SSD_PAIRS.items():
        ratio = cost_ratio_of_ssd(cached / serial)
        points.append(
            OperatingPoint(
                pair=pair,
                dataset="mean of four",
                cost_ratio=ratio,
                alpha=alpha_of_sps(serial / plain, SSD_DRAFT_LENGTH, ratio),
                reported={"fixed_length": serial / plain, "saguaro": cached / plain},
                implied_by=("fixed_length", "saguaro"),
            )
        )
    return points


def alpha_of_pearl(speedup: float, gamma: float) -> float:
    """Acceptance at which exact PEARL without overheads, gamma being the speed ratio, reaches a speed-up.

    Real acceptance is higher, for overheads are not zero.

    >>> round(alpha_of_pearl(2.02, gamma=8), 3)
    0.722
    """
    return float(brentq(lambda alpha: float(pearl_tokens_per_step(alpha, gamma)) - speedup, 0.0, 1.0))


def alpha_of_sps(speedup: float, gamma: float, cost_ratio: float) -> float:
    """Acceptance at which speculative sampling reaches a speed-up.

    >>> round(alpha_of_sps(1.85, gamma=4, cost_ratio=8), 1)
    0.7
    """
    return float(brentq(lambda alpha: float(sps_speedup(alpha, gamma, cost_ratio)) - speedup, 0.0, 1.0))


def cost_ratio_of_ssd(gain: float) -> float:
    """Speed ratio c at which an outcome cache gains this much over speculative sampling with the same drafts of K tokens.

    Both emit the same tokens a round, so the gain is (K + c) / (c + (1 - hit) K) where drafting hides behind the target
    (K <= c); solved for c with the K and hit rate of the paper's benchmarks.

    >>> round(cost_ratio_of_ssd(1.58), 1)
    8.7
    """
    length, missed = SSD_DRAFT_LENGTH, (1 - SSD_HIT_RATE) * SSD_DRAFT_LENGTH
    return (length - gain * missed) / (gain - 1)

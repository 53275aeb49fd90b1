"""SpecBranch with predictors that cannot err: what knowing every class, and every first wrong token, would bring.

The oracle of the *classes* knows of each window whether none, some or all of it will be accepted, which is what H-RAD
predicts, and SpecBranch acts on it as it acts on H-RAD. That of the *positions* knows the first wrong token itself. Both get
the settings that are fastest for them, found as everybody's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.papers.bounds import clairvoyant
from analysis.tuning.choosing import AUTO_TRIED, WITH_CLASSES, WITHOUT_CLASSES, choose_policies
from analysis.tuning.search import Chosen
from sim.decoding.informed import ClassConfusion, said_classes
from sim.latency.base import LatencyModel
from traces.schema import RequestTrace

CLASSES, POSITIONS = "SpecBranch, oracle of classes", "SpecBranch, oracle of positions"
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """choice: the fastest settings, with their predicted speed. traces: with what the oracle says."""

    name: str
    choice: Chosen
    traces: list[RequestTrace]

    @property
    def window(self) -> int:
        """Draft tokens that its classes speak of; 0 for an oracle of positions."""
        return self.traces[0].class_window


def oracle_windows(traces: Sequence[RequestTrace]) -> list[int]:
    """Windows for which oracles of classes are tried: those that tails of these traces can answer for."""
    depth = min(trace.tail_depth for trace in traces) if all(trace.signals for trace in traces) else 0
    return [window for window in _WINDOWS if window < depth]


def oracles(traces: Sequence[RequestTrace], latency: LatencyModel, *, seed: int = 0) -> list[Oracle]:
    """Both oracles on traces of one temperature, the best of all windows; none where tails are too short."""
    windows = oracle_windows(traces)
    if not windows:
        return []
    told = [told_classes(traces, window, seed=seed) for window in windows]
    of_classes = [
        Oracle(
            name=CLASSES,
            choice=choose_policies(known, latency, max_tried=AUTO_TRIED, names=[WITH_CLASSES])[WITH_CLASSES],
            traces=known,
        )
        for known in told
    ]
    known = [replace(clairvoyant(trace), class_probs=(), class_window=0) for trace in traces]
    choice = choose_policies(known, latency, max_tried=AUTO_TRIED, names=[WITHOUT_CLASSES])[WITHOUT_CLASSES]
    best = max(of_classes, key=lambda oracle: oracle.choice.tokens_per_s)
    return [best, Oracle(name=POSITIONS, choice=choice, traces=known)]


def told_classes(
    traces: Sequence[RequestTrace], window: int, known: float = 1.0, *, seed: int = 0
) -> list[RequestTrace]:
    """The traces with a predictor that knows the class so often, and leaves the rest to confidence."""
    confusion, rngs = ClassConfusion.knowing(known), np.random.default_rng(seed).spawn(len(traces))
    return [
        replace(trace, class_probs=said_classes(trace.ranks, window, confusion, rng), class_window=window)
        for trace, rng in zip(traces, rngs, strict=True)
    ]

"""Every policy of a family that could be best, without any search: what a choice is held to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from analysis.tuning.choosing import measure_on
from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from traces.schema import RequestTrace

WIDTH_SHARE = 0.03  # what a further row adds to a draft forward, of one
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
AT_ONCE = 2000


def geometric_traces(alpha: float, *, num: int = 16, num_tokens: int = 96) -> list[RequestTrace]:
    """Requests whose every token is accepted with the same chance."""
    rng = np.random.default_rng(0)
    model = Geometric(alpha=alpha, tail_depth=64)
    return [model.sample(num_tokens, request_id, rng) for request_id in range(num)]


def flat_latency(cost_ratio: float) -> ConstantLatency:
    """The textbook's, but for rows, each of which makes a draft forward a little slower."""
    draft_s = 1 / cost_ratio
    return ConstantLatency(draft_s=draft_s, verify_s=1.0, branch_s=WIDTH_SHARE * draft_s)


def grids(cost_ratio: float, alpha: float, *, step: int = 1) -> dict[str, Iterable[Policy]]:
    """Family -> all its policies up to far beyond what pays, for traces whose signals tell nothing. step: of draft lengths of
    the families with three settings."""
    longest = int(2.5 * cost_ratio) + 12
    lengths, windows = range(1, 61), range(1, longest, step)
    serial = range(0, min(longest, 24), step)
    intercept = float(np.log(alpha / (1 - alpha)))
    return {
        "fixed_length": map(FixedLength, lengths),
        "pearl": map(Pearl, lengths),
        "saguaro": [
            Saguaro(length, fan_out, spread, round(alpha, 3))
            for length in windows
            for fan_out in range(1, 13)
            for spread in FanOut
        ],
        "specbranch without H-RAD": _specbranch(windows, serial, COUNTS),
        "specbranch without branches and H-RAD": _specbranch(windows, serial, (1,)),
        "specbranch without H-RAD, fixed count": _specbranch(windows, serial, COUNTS, is_fixed_count=True),
        "outcome_hedging": (
            OutcomeHedging(
                intercept=intercept,
                slope=0.0,
                least_reach=0.0,
                rank_decay=0.5,
                draft_length=length,
                max_branches=count,
                serial_length=prior,
            )
            for length, count, prior in itertools.product(windows, COUNTS[::2], serial)
        ),
    }


def threshold_grids(longest: int) -> dict[str, Iterable[Policy]]:
    """The same for rules that stop by a signal, where signals tell something."""
    margins = np.round(np.linspace(0, 5, 51), 2).tolist()
    shares = np.round(np.linspace(0, 1, 41), 3).tolist()
    thresholds = [(ConfidenceSignal.MARGIN, value) for value in margins]
    thresholds += [(ConfidenceSignal.MAX_PROB, value) for value in shares]
    return {
        "confidence_stop": (
            ConfidenceStop(threshold, length, signal)
            for (signal, threshold), length in itertools.product(thresholds, range(1, longest))
        ),
        "product_rule": (
            ProductRule(threshold=threshold, max_length=length)
            for threshold, length in itertools.product(shares, range(1, longest))
        ),
    }


def best_speed(policies: Iterable[Policy], traces: list[RequestTrace], latency: LatencyModel) -> float:
    """Of all of them, in tokens/s."""
    measure = measure_on(traces, latency)
    return max(float(measure(chunk).max()) for chunk in _chunks(policies))


def shortfall(speeds: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
    """How far each family's choice is below the best of its grid, relative; negative where the choice is beyond the grid."""
    return {name: 1 - speeds[name] / best[name] for name in best}


def _specbranch(
    windows: Iterable[int], serial: Iterable[int], counts: Iterable[int], *, is_fixed_count: bool = False
) -> Iterator[Policy]:
    for length, prior, count in itertools.product(windows, serial, counts):
        yield SpecBranch(
            length,
            count,
            0.0,
            uses_hrad=False,
            is_fixed_count=is_fixed_count,
            on_miss=OnMiss.SERIAL if prior else OnMiss.OVERLAP,
            prior_length=prior,
        )


def _chunks(policies: Iterable[Policy]) -> Iterator[list[Policy]]:
    waiting = iter(policies)
    while chunk := list(itertools.islice(waiting, AT_ONCE)):
        yield chunk

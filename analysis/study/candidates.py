"""Fixed lists of policies: what a recording runs, what is explored by default, and the textbook's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analysis.tuning.families import grid
from analysis.tuning.measured import Measured
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.latency.base import LatencyModel
from traces.schema import RequestTrace

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
LOOKUP_CALIBRATION_POLICIES = ("autoregressive", "prompt_lookup:max_length=10")


def hrad_calibration_policies(class_window: int) -> tuple[str, ...]:
    """What the predictions take: a label for a predictor whose classes speak of so many draft tokens, none for 0."""
    return (f"specbranch:draft_length={class_window},max_branches=2",) if class_window else ()


def measured_settings(traces: Sequence[RequestTrace], latency: LatencyModel) -> dict[str, Any]:
    """Settings of policies that follow from measurements at the traces' one temperature: the acceptance curve of the noisy
    margin, the rank law, and how likely a further verified token has to be, so that it is worth its time."""
    measured = Measured.of(traces, latency)
    intercept, slope = measured.curve
    return {
        "guess_by": ConfidenceSignal.MARGIN,
        "intercept": intercept,
        "slope": slope,
        "least_reach": min(1.0, round(TYPICAL_SPEEDUP * measured.marginal_verify, 3)),
        "acceptance": min(0.95, round(measured.alpha, 3)),
        "rank_decay": measured.rank_decay,
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

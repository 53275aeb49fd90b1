"""Other methods as outcome hedging: the settings under which ours runs their very rounds."""

from __future__ import annotations

import math

from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import Choice, OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength


def as_outcome_hedging(policy: Policy) -> OutcomeHedging | None:
    """The same method as a setting of ours; None where there is none (SSD's other miss exponents).

    >>> str(as_outcome_hedging(Pearl(draft_length=6)).hedges)
    'frontier'
    """
    if isinstance(policy, Autoregressive):
        return _plain(draft_length=0, max_branches=0)
    if isinstance(policy, FixedLength):
        return _plain(draft_length=0, max_branches=0, serial_length=policy.draft_length)
    if isinstance(policy, Pearl):
        return _plain(
            draft_length=policy.draft_length - 1, max_branches=1, hedges=Choice.FRONTIER, num_further=policy.num_further
        )
    if isinstance(policy, Saguaro) and policy.miss_exponent == 1:
        return _plain(
            draft_length=policy.draft_length,
            serial_length=policy.draft_length,
            max_branches=policy.fan_out * (policy.draft_length + 1),
            hedges=Choice.UNIFORM if policy.spread is FanOut.UNIFORM else Choice.GEOMETRIC,
            acceptance=policy.acceptance,
        )
    if isinstance(policy, SpecBranch):
        # The window ends before the first token below epsilon: predicted acceptance is one half there.
        return OutcomeHedging(
            guess_by=policy.signal,
            intercept=-policy.epsilon,
            slope=1.0,
            least_acceptance=0.5,
            least_reach=0.0,
            draft_length=policy.draft_length,
            serial_length=0 if policy.on_miss is OnMiss.OVERLAP else policy.prior_length or policy.draft_length,
            max_branches=policy.max_branches,
            hedges=Choice.FRONTIER if policy.is_fixed_count else Choice.CONFIDENCE,
            uses_hrad=policy.uses_hrad,
            num_further=policy.num_further,
        )
    return None


def _plain(
    *,
    draft_length: int,
    max_branches: int,
    serial_length: int = 0,
    hedges: Choice = Choice.HEAVIEST,
    acceptance: float = 0.5,
    num_further: int = 0,
) -> OutcomeHedging:
    """Without signals: everything drafted is submitted."""
    return OutcomeHedging(
        intercept=round(math.log(acceptance / (1 - acceptance)), 9),
        slope=0.0,
        least_reach=0.0,
        draft_length=draft_length,
        max_branches=max_branches,
        serial_length=serial_length,
        hedges=hedges,
        num_further=num_further,
    )

"""H-RAD's classes for the array forms of the policies that let them overrule confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.specbranch import ACCEPT, CONFIDENCE, REJECT, SpecBranch
from sim.sweep.lockstep import Ints, Lanes, TraceArrays


class ClassOverrule:
    """What `likeliest_class` makes of a number of tokens that confidence asks for, by policy and position."""

    def __init__(self, policies: Sequence[OutcomeHedging] | Sequence[SpecBranch], arrays: TraceArrays) -> None:
        self.uses_hrad = np.array([policy.uses_hrad for policy in policies])
        self.classes = arrays.classes() if self.uses_hrad.any() else None

    def __call__(self, lanes: Lanes, everything: Ints, confident: Ints) -> Ints:
        """`everything` where the class says accept, 0 where it says reject, else `confident`."""
        if self.classes is None:
            return confident
        kind = np.where(self.uses_hrad[lanes.row], self.classes[lanes.position], CONFIDENCE)
        kept: Ints = np.where(kind == ACCEPT, everything, np.where(kind == REJECT, 0, confident))
        return kept

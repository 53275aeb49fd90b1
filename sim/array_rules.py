"""Array forms of policies for the sweep, one class each; a policy without one is replayed by the step machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.lockstep import ArrayRule, HedgeArrays, Ints, Lanes, TraceArrays
from sim.policies.autoregressive import Autoregressive
from sim.policies.base import Policy
from sim.policies.confidence import ConfidenceStop
from sim.policies.fixed_length import FixedLength
from sim.policies.pearl import Pearl


class NothingRule:
    """The answers of a policy that does nothing (`policies.base.Defaults`)."""

    overlaps = False

    def num_wanted(self, lanes: Lanes) -> Ints:
        return np.zeros_like(lanes.position)

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        return None

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        return HedgeArrays(np.zeros_like(num_pending), np.zeros_like(num_pending))

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        return None

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        pass


class FixedLengthRule(NothingRule):
    """`FixedLength`: the same number of tokens every round."""

    def __init__(self, policies: Sequence[FixedLength], arrays: TraceArrays) -> None:
        self.draft_length = _setting(policies, "draft_length")

    def num_wanted(self, lanes: Lanes) -> Ints:
        return self.draft_length[lanes.row]


class PearlRule(NothingRule):
    """`Pearl`: the all-accepted outcome, best token."""

    overlaps = True

    def __init__(self, policies: Sequence[Pearl], arrays: TraceArrays) -> None:
        self.num_steps = _setting(policies, "draft_length") - 1

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        return HedgeArrays(np.ones_like(num_pending), self.num_steps[lanes.row])


class ConfidenceStopRule(NothingRule):
    """`ConfidenceStop`: the length depends on the position alone, so it is worked out for all positions beforehand."""

    def __init__(self, policies: Sequence[ConfidenceStop], arrays: TraceArrays) -> None:
        self.lengths = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        longest = max(policy.max_length for policy in policies)
        for row, policy in enumerate(policies):
            runs = arrays.runs(policy.signal, longest)[:, : policy.max_length]
            is_last = ~(runs >= policy.threshold)
            is_last[:, -1] = True
            self.lengths[row] = 1 + np.argmax(is_last, axis=1)

    def num_wanted(self, lanes: Lanes) -> Ints:
        return self.lengths[lanes.row, lanes.position].astype(np.int64)


def _autoregressive(policies: Sequence[Autoregressive], arrays: TraceArrays) -> NothingRule:
    return NothingRule()


def _setting(policies: Sequence[Any], name: str) -> Ints:
    """One whole-number setting of all policies; Any: the field's name is not known to the type checker."""
    return np.array([getattr(policy, name) for policy in policies], dtype=np.int64)


# Any: each rule takes its own policy type. Keyed by the exact class: a subclass may answer otherwise.
ARRAY_RULES: dict[type[Policy], Callable[[Any, TraceArrays], ArrayRule]] = {
    Autoregressive: _autoregressive,
    FixedLength: FixedLengthRule,
    Pearl: PearlRule,
    ConfidenceStop: ConfidenceStopRule,
}

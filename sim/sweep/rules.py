"""Array forms of policies for the sweep, one class each; a policy without one is replayed by the step machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.sweep.class_arrays import ClassOverrule
from sim.sweep.guess_arrays import accept_probabilities
from sim.sweep.lockstep import ArrayRule, Bools, Floats, HedgeArrays, Ints, Lanes, TraceArrays
from sim.sweep.outcome_arrays import OutcomeHedgingRule


class PlainArrays:
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


class FixedLengthArrays(PlainArrays):
    """`FixedLength`: the same number of tokens every round."""

    def __init__(self, policies: Sequence[FixedLength], arrays: TraceArrays) -> None:
        self.draft_length = _setting(policies, "draft_length")

    def num_wanted(self, lanes: Lanes) -> Ints:
        return self.draft_length[lanes.row]


class PearlArrays(PlainArrays):
    """`Pearl`: the all-accepted outcome, best token."""

    overlaps = True

    def __init__(self, policies: Sequence[Pearl], arrays: TraceArrays) -> None:
        self.num_steps = _setting(policies, "draft_length") - 1

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        return HedgeArrays(np.ones_like(num_pending), self.num_steps[lanes.row])


class ConfidenceStopArrays(PlainArrays):
    """`ConfidenceStop`: the length depends on the position alone, so it is worked out for all positions beforehand."""

    def __init__(self, policies: Sequence[ConfidenceStop], arrays: TraceArrays) -> None:
        longest = max(policy.max_length for policy in policies)
        self.lengths = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        for row, policy in enumerate(policies):
            runs = arrays.runs(policy.signal, longest)[:, : policy.max_length]
            self.lengths[row] = _until(~(runs >= policy.threshold))

    def num_wanted(self, lanes: Lanes) -> Ints:
        return self.lengths[lanes.row, lanes.position].astype(np.int64)


class ProductRuleArrays(PlainArrays):
    """`ProductRule`: as for `ConfidenceStop`, with running products of predicted acceptance."""

    def __init__(self, policies: Sequence[ProductRule], arrays: TraceArrays) -> None:
        longest = max(policy.max_length for policy in policies)
        self.lengths = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        for row, policy in enumerate(policies):
            products = np.cumprod(accept_probabilities(policy, arrays, longest)[:, : policy.max_length], axis=1)
            is_doubtful = ~(1 - products <= policy.threshold)
            self.lengths[row] = _until(is_doubtful) if policy.threshold >= 0 else 0

    def num_wanted(self, lanes: Lanes) -> Ints:
        return self.lengths[lanes.row, lanes.position].astype(np.int64)


class AdaEdlArrays(PlainArrays):
    """`AdaEdl`: the threshold moves with the verdicts, so it is compared anew in every round."""

    def __init__(self, policies: Sequence[AdaEdl], arrays: TraceArrays) -> None:
        self.max_length = _setting(policies, "max_length")
        names = ("threshold", "target_rate", "step", "rate_memory", "threshold_memory")
        self.of = {name: np.array([getattr(policy, name) for policy in policies], dtype=float) for name in names}
        longest = int(self.max_length.max())
        entropies = np.maximum(0.0, -arrays.runs(ConfidenceSignal.NEGATIVE_ENTROPY, longest)[:, :longest])
        factors = sorted({policy.entropy_factor for policy in policies})
        self.bounds = np.stack([1 - np.sqrt(factor * entropies) for factor in factors])
        self.factor = np.array([factors.index(policy.entropy_factor) for policy in policies])

    def _memory(self, lanes: Lanes) -> dict[str, Floats]:
        if not lanes.memory:
            lanes.memory = {"rate": self.of["target_rate"][lanes.row], "threshold": self.of["threshold"][lanes.row]}
        return lanes.memory

    def num_wanted(self, lanes: Lanes) -> Ints:
        bounds = self.bounds[self.factor[lanes.row], lanes.position]
        is_last = ~(bounds >= self._memory(lanes)["threshold"][:, None])
        is_last |= np.arange(bounds.shape[1]) >= self.max_length[lanes.row, None] - 1
        return _until(is_last)

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        memory = self._memory(lanes)
        of = {name: values[lanes.row] for name, values in self.of.items()}
        was_tried = num_pending > 0
        rate = of["rate_memory"] * memory["rate"]
        rate = rate + (1 - of["rate_memory"]) * num_accepted / np.maximum(num_pending, 1)
        moved = memory["threshold"] + np.where(rate <= of["target_rate"], of["step"], -of["step"])
        threshold = of["threshold_memory"] * memory["threshold"] + (1 - of["threshold_memory"]) * moved
        memory["rate"] = np.where(was_tried, rate, memory["rate"])
        was_cut = was_tried & (num_pending < self.max_length[lanes.row])
        memory["threshold"] = np.where(was_cut, threshold, memory["threshold"])


class SaguaroArrays(PlainArrays):
    """`Saguaro`: a table of fan-outs for every number of pending tokens."""

    overlaps = True

    def __init__(self, policies: Sequence[Saguaro], arrays: TraceArrays) -> None:
        self.draft_length = _setting(policies, "draft_length")
        width = int(self.draft_length.max()) + 1
        self.fanouts = np.zeros((len(policies), width, width), dtype=np.int64)  # (row, pending, accepted)
        for row, policy in enumerate(policies):
            for num_pending in range(policy.draft_length + 1):
                self.fanouts[row, num_pending, : num_pending + 1] = policy.fanout_of(num_pending)

    def num_wanted(self, lanes: Lanes) -> Ints:
        return np.where(lanes.was_hit, 0, self.draft_length[lanes.row])

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        at_end = self.fanouts[lanes.row, num_pending, num_pending]
        return HedgeArrays(at_end, self.draft_length[lanes.row], self.fanouts[lanes.row, num_pending])


class SpecBranchArrays(PlainArrays):
    """`SpecBranch`: classes and branch points are tables over positions, the branch count follows the frontier."""

    overlaps = True

    def __init__(self, policies: Sequence[SpecBranch], arrays: TraceArrays) -> None:
        self.draft_length = _setting(policies, "draft_length")
        self.prior_length = np.array([policy.prior_length or policy.draft_length for policy in policies])
        self.max_branches = _setting(policies, "max_branches")
        self.is_serial = np.array([policy.on_miss is not OnMiss.OVERLAP for policy in policies])
        self.is_fixed_count = _setting(policies, "is_fixed_count") == 1
        self.by_class = ClassOverrule(policies, arrays)
        longest = int(max(self.draft_length.max(), self.prior_length.max())) + 1
        self.max_probs = arrays.runs(ConfidenceSignal.MAX_PROB, longest)
        self.num_sure = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        for row, policy in enumerate(policies):
            runs = arrays.runs(policy.signal, longest)[:, :longest]
            self.num_sure[row] = _until(~(runs >= policy.epsilon)) - 1

    def num_wanted(self, lanes: Lanes) -> Ints:
        longest = self.prior_length[lanes.row]
        confident = np.minimum(self.num_sure[lanes.row, lanes.position] + 1, longest)
        return np.where(lanes.was_hit | ~self.is_serial[lanes.row], 0, self.by_class(lanes, longest, confident))

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        sure = np.minimum(self.num_sure[lanes.row, lanes.position], num_drafted)
        return self.by_class(lanes, num_drafted, sure)

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        return self.num_submitted(lanes, num_ahead)

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        most = self.max_branches[lanes.row]
        frontier = self.max_probs[lanes.position, num_pending]
        count = np.maximum(1, np.nan_to_num(most * (1 - frontier)).astype(np.int64))
        return HedgeArrays(np.where(self.is_fixed_count[lanes.row], most, count), self.draft_length[lanes.row])


class PromptLookupArrays(PlainArrays):
    """`PromptLookup`: the length depends on the position alone; what ends it, if anything, is withdrawn."""

    def __init__(self, policies: Sequence[PromptLookup], arrays: TraceArrays) -> None:
        self.max_length = _setting(policies, "max_length")
        width = int(self.max_length.max()) + 1
        is_last = ~(arrays.runs(ConfidenceSignal.MAX_PROB, width)[:, :width] > 0.5)
        self.num_found = _until(is_last) - 1

    def num_wanted(self, lanes: Lanes) -> Ints:
        return np.minimum(self.num_found[lanes.position] + 1, self.max_length[lanes.row])

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        return np.minimum(self.num_found[lanes.position], num_drafted)


def _until(is_last: Bools) -> Ints:
    """(rows, width) -> (rows,) columns up to the first that is true, it included; all of them when none is."""
    is_last[:, -1] = True
    lengths: Ints = 1 + np.argmax(is_last, axis=1)
    return lengths


def _autoregressive(policies: Sequence[Autoregressive], arrays: TraceArrays) -> PlainArrays:
    return PlainArrays()


def _setting(policies: Sequence[Any], name: str) -> Ints:
    """One whole-number setting of all policies; Any: the field's name is not known to the type checker."""
    return np.array([getattr(policy, name) for policy in policies], dtype=np.int64)


# Any: each rule takes its own policy type. Keyed by the exact class: a subclass may answer otherwise.
ARRAY_RULES: dict[type[Policy], Callable[[Any, TraceArrays], ArrayRule]] = {
    Autoregressive: _autoregressive,
    FixedLength: FixedLengthArrays,
    Pearl: PearlArrays,
    ConfidenceStop: ConfidenceStopArrays,
    ProductRule: ProductRuleArrays,
    AdaEdl: AdaEdlArrays,
    Saguaro: SaguaroArrays,
    SpecBranch: SpecBranchArrays,
    OutcomeHedging: OutcomeHedgingRule,
    PromptLookup: PromptLookupArrays,
}

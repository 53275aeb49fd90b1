"""The array form of outcome hedging: the weights of all outcomes of all lanes at once, to the last digit the policy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.decoding.policies.overlapped.outcome_hedging import Choice, OutcomeHedging
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from sim.sweep.class_arrays import ClassOverrule
from sim.sweep.guess_arrays import accept_probabilities
from sim.sweep.lockstep import Floats, HedgeArrays, Ints, Lanes, TraceArrays


class OutcomeHedgingRule:
    """`OutcomeHedging`: lengths and prefixes are tables over positions, hedges are worked out for all lanes together.

    Sums and products run in the policy's own order, so that equal weights are equal here, too, and ties end alike.
    """

    def __init__(self, policies: Sequence[OutcomeHedging], arrays: TraceArrays) -> None:
        self.overlaps = policies[0].overlaps  # of all: a sweep steps policies apart that overlap and that do not
        self.draft_length = np.array([policy.draft_length for policy in policies])
        self.max_branches = np.array([policy.max_branches for policy in policies])
        self.serial_length = np.array([policy.serial_length for policy in policies])
        self.by_class = ClassOverrule(policies, arrays)
        self.choice = np.array([list(Choice).index(policy.hedges) for policy in policies])
        longest = int(max(self.draft_length.max(), self.serial_length.max()))
        widest = max(1, int(self.max_branches.max()))
        curves = [(policy.guess_by, policy.intercept, policy.slope) for policy in policies]
        distinct = list(dict.fromkeys(curves))
        self.curve = np.array([distinct.index(curve) for curve in curves])
        betas = [accept_probabilities(policies[curves.index(curve)], arrays, longest + 1) for curve in distinct]
        self.betas = np.stack([beta[:, : longest + 1] for beta in betas])  # (curves, positions, longest + 1)
        self.max_probs: Floats | None = None
        if any(policy.hedges is Choice.CONFIDENCE for policy in policies):
            self.max_probs = arrays.runs(ConfidenceSignal.MAX_PROB, longest + 1)
        self.sure = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        self.rank_law = np.zeros((len(policies), widest))
        self.fanouts = np.zeros((len(policies), longest + 1, longest + 1), dtype=np.int64)  # (row, pending, accepted)
        for row, policy in enumerate(policies):
            self.sure[row] = _num_sure(policy, self.betas[self.curve[row]])
            decay = policy.rank_decay
            self.rank_law[row, : policy.max_branches] = [
                (1 - decay) * decay**rank for rank in range(policy.max_branches)
            ]
            if policy.hedges in (Choice.UNIFORM, Choice.GEOMETRIC):
                for num_pending in range(longest + 1):
                    self.fanouts[row, num_pending, : num_pending + 1] = policy.fan_outs(num_pending)

    def num_wanted(self, lanes: Lanes) -> Ints:
        longest = self.serial_length[lanes.row]
        confident = np.minimum(self.sure[lanes.row, lanes.position] + 1, longest)
        return np.where(lanes.was_hit, 0, self.by_class(lanes, longest, confident))

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        return self.by_class(lanes, num_drafted, np.minimum(self.sure[lanes.row, lanes.position], num_drafted))

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        return self.num_submitted(lanes, num_ahead)

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        row, every = lanes.row, np.arange(len(lanes.row))
        choice, width = self.choice[row], int(num_pending.max()) + 1
        fanout = self.fanouts[row, num_pending, :width]
        is_heaviest = choice == list(Choice).index(Choice.HEAVIEST)
        if is_heaviest.any():
            fanout[is_heaviest] = self._heaviest(
                row[is_heaviest], lanes.position[is_heaviest], num_pending[is_heaviest], width
            )
        at_end = fanout[every, num_pending]
        at_end = np.where(choice == list(Choice).index(Choice.FRONTIER), self.max_branches[row], at_end)
        if self.max_probs is not None:
            frontier = self.max_probs[lanes.position, num_pending]
            count = np.maximum(1, np.nan_to_num(self.max_branches[row] * (1 - frontier)).astype(np.int64))
            at_end = np.where(choice == list(Choice).index(Choice.CONFIDENCE), count, at_end)
        fanout[every, num_pending] = 0
        return HedgeArrays(at_end, self.draft_length[row], fanout)

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        pass

    def _heaviest(self, row: Ints, position: Ints, num_pending: Ints, width: int) -> Ints:
        """(lanes, accepted) outcomes hedged at each number of accepted tokens."""
        betas = self.betas[self.curve[row], position, :width]
        return _counts(betas, num_pending, self.rank_law[row], self.max_branches[row])


def _counts(betas: Floats, num_pending: Ints, rank_law: Floats, max_branches: Ints) -> Ints:
    """(lanes, accepted) how many of the max_branches likeliest outcomes have each number accepted, as
    `OutcomeHedging.outcomes` orders them.

    betas: (lanes, accepted). At one number accepted the weights fall with the rank, so that the next outcome is the heaviest
    of each number's next one: a merge of sorted lists. The last column is rank 0, an outcome at the end of the pending tokens
    only. Of equals the smaller number comes first, as in the policy's stable sort. A rank beyond a policy's own max_branches
    is never reached.
    """
    every, columns, pending = np.arange(len(betas)), np.arange(betas.shape[1]), num_pending[:, None]
    reached = np.cumprod(np.concatenate([np.ones((len(betas), 1)), betas[:, :-1]], axis=1), axis=1)
    of_number = np.where(columns <= pending, reached * (1 - betas), -np.inf)
    best = (reached * betas)[every, num_pending]
    following = np.concatenate([of_number * rank_law[:, :1], best[:, None]], axis=1)
    laws = np.concatenate([rank_law, np.zeros((len(betas), 1))], axis=1)
    counts = np.zeros_like(following, dtype=np.int64)
    for turn in range(int(max_branches.max(initial=0))):
        chosen = np.argmax(following, axis=1)
        counts[every, chosen] += turn < max_branches
        is_rank = chosen < len(columns)
        number = np.where(is_rank, chosen, 0)
        further = of_number[every, number] * laws[every, counts[every, number]]
        following[every, chosen] = np.where(is_rank, further, -np.inf)
    counts[every, num_pending] += counts[:, -1]
    return counts[:, :-1]


def _num_sure(policy: OutcomeHedging, betas: Floats) -> Ints:
    """(positions,) tokens that `OutcomeHedging.keep` would keep of a long window."""
    is_last = (np.cumprod(betas, axis=1) < policy.least_reach) | (betas < policy.least_acceptance)
    first: Ints = np.where(is_last.any(axis=1), np.argmax(is_last, axis=1), is_last.shape[1])
    return first

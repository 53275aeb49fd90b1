"""The array form of outcome hedging: the weights of all outcomes of all lanes at once, to the last digit the policy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.guess_arrays import accept_probabilities
from sim.lockstep import Bools, Floats, HedgeArrays, Ints, Lanes, TraceArrays
from sim.policies.outcome_hedging import OutcomeHedging, token_values
from sim.policies.specbranch import OnMiss


class OutcomeHedgingRule:
    """`OutcomeHedging`: lengths and prefixes are tables over positions, hedges are worked out for all lanes together.

    Sums and products run in the policy's own order, so that equal weights are equal here, too, and ties end alike.
    """

    overlaps = True

    def __init__(self, policies: Sequence[OutcomeHedging], arrays: TraceArrays) -> None:
        self.draft_length = np.array([policy.draft_length for policy in policies])
        self.max_branches = np.array([policy.max_branches for policy in policies])
        self.is_full_length = np.array([policy.is_full_length for policy in policies])
        self.is_serial = np.array([policy.on_miss is not OnMiss.OVERLAP for policy in policies])
        self.only_frontier = np.array([policy.only_frontier for policy in policies])
        longest, widest = int(self.draft_length.max()), int(self.max_branches.max())
        curves = [(policy.guess_by, policy.intercept, policy.slope) for policy in policies]
        distinct = list(dict.fromkeys(curves))
        self.curve = np.array([distinct.index(curve) for curve in curves])
        betas = [accept_probabilities(policies[curves.index(curve)], arrays, longest + 1) for curve in distinct]
        self.betas = np.stack([beta[:, : longest + 1] for beta in betas])  # (curves, positions, longest + 1)
        self.wanted = np.empty((len(policies), arrays.num_positions), dtype=np.int16)
        self.sure = np.empty_like(self.wanted)
        self.rank_law = np.zeros((len(policies), widest))
        self.values = np.zeros((len(policies), longest))
        self.late = np.zeros((len(policies), longest + 1, widest, longest))  # (row, pending, rows - 1, steps before)
        for row, policy in enumerate(policies):
            beta = self.betas[self.curve[row], :, : policy.draft_length]
            self.wanted[row] = _num_wanted(policy, beta)
            self.sure[row] = _num_sure(policy, beta)
            self.rank_law[row, : policy.max_branches] = policy.rank_law()
            self.values[row, : policy.draft_length] = token_values(
                policy.draft_length, policy.mean_acceptance, policy.worth, policy.draft_cost, policy.verify_cost
            )
            self.late[row] = _lateness(policy, *self.late.shape[1:])

    def num_wanted(self, lanes: Lanes) -> Ints:
        row = lanes.row
        whole = np.where(lanes.was_hit, 0, self.draft_length[row])
        wanted = np.where(self.is_full_length[row], whole, self.wanted[row, lanes.position])
        return np.where(self.is_serial[row], wanted, 0)

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        return np.minimum(self.sure[lanes.row, lanes.position], num_drafted)

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        return self.num_submitted(lanes, num_ahead)

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        row, width = lanes.row, int(num_pending.max()) + 1
        betas = self.betas[self.curve[row], lanes.position, :width]
        weights, accepted = _outcomes(betas, num_pending, self.rank_law[row], self._is_hedged(row, num_pending, width))
        counts, steps = self._best_split(row, num_pending, weights)
        counts = np.where(self.is_full_length[row], self.max_branches[row], counts)
        steps = np.where(self.is_full_length[row], self.draft_length[row], steps)
        lane, chosen = np.nonzero(np.arange(weights.shape[1]) < counts[:, None])
        cells = lane * width + accepted[lane, chosen]
        fanout = np.bincount(cells, minlength=len(row) * width).reshape(len(row), width)
        at_end = fanout[np.arange(len(row)), num_pending]
        fanout[np.arange(len(row)), num_pending] = 0
        return HedgeArrays(at_end, steps, fanout)

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        pass

    def _is_hedged(self, row: Ints, num_pending: Ints, width: int) -> Bools:
        """(lanes, accepted, 1 + ranks) outcomes that may be hedged: rank 0 is one at the end of the pending tokens only.

        A rank beyond a policy's own max_branches is never chosen: the lower ranks of its number accepted come first.
        """
        accepted, pending = np.arange(width), num_pending[:, None]
        is_end = accepted == pending
        may = is_end | ((accepted < pending) & ~self.only_frontier[row, None])
        ranks = np.repeat(may[..., None], self.rank_law.shape[1], axis=2)
        return np.concatenate([is_end[..., None], ranks], axis=2)

    def _best_split(self, row: Ints, num_pending: Ints, weights: Floats) -> tuple[Ints, Ints]:
        """`OutcomeHedging._best_split`: rows, and steps of each."""
        is_own = np.arange(weights.shape[1]) < self.max_branches[row, None]
        hits = np.cumsum(np.where(is_own, weights, 0.0), axis=1)
        late, values = self.late[row, num_pending], self.values[row]
        gains, steps = np.zeros_like(hits), np.zeros(hits.shape, dtype=np.int64)
        goes_on = is_own
        for step in range(values.shape[1]):
            worth = hits * values[:, step, None]  # nothing beyond the policy's own draft_length
            goes_on = goes_on & (worth > late[..., step])
            gains = np.where(goes_on, gains + (worth - late[..., step]), gains)
            steps += goes_on
        best = np.argmax(gains, axis=1)  # the first of equals, as in the policy
        at_best = np.arange(len(row)), best
        pays = gains[at_best] > 0
        return np.where(pays, best + 1, 1), np.where(pays, steps[at_best], 0)


def _outcomes(betas: Floats, num_pending: Ints, rank_law: Floats, is_hedged: Bools) -> tuple[Floats, Ints]:
    """(lanes, branches) weights and numbers accepted of the likeliest outcomes, best first, as
    `OutcomeHedging.outcomes` gives them; betas: (lanes, accepted)."""
    reached = np.cumprod(np.concatenate([np.ones((len(betas), 1)), betas[:, :-1]], axis=1), axis=1)
    of_rank = (reached * (1 - betas))[..., None] * rank_law[:, None, :]
    weights = np.concatenate([(reached * betas)[..., None], of_rank], axis=2)
    flat = np.where(is_hedged, weights, -np.inf).reshape(len(betas), -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, : rank_law.shape[1]]
    return np.take_along_axis(flat, order, axis=1), order // (1 + rank_law.shape[1])


def _num_wanted(policy: OutcomeHedging, betas: Floats) -> Ints:
    """(positions,) pending tokens at which `OutcomeHedging.draft_more` says no; it then says no to more as well."""
    first = np.full((len(betas), 1), policy.mean_acceptance)
    reached = np.cumprod(np.concatenate([first, betas[:, :-1]], axis=1), axis=1)
    pays = reached / policy.worth > policy.verify_cost + policy.draft_cost
    return _num_before(~pays)


def _num_sure(policy: OutcomeHedging, betas: Floats) -> Ints:
    """(positions,) tokens that `OutcomeHedging.keep` would keep of a whole window."""
    if policy.is_full_length:
        return np.full(len(betas), betas.shape[1])
    return _num_before(np.cumprod(betas, axis=1) < policy.verify_cost * policy.worth)


def _num_before(is_last: Bools) -> Ints:
    """(rows, width) -> (rows,) columns before the first that is true; all of them when none is."""
    found: Ints = np.where(is_last.any(axis=1), np.argmax(is_last, axis=1), is_last.shape[1])
    return found


def _lateness(policy: OutcomeHedging, num_pending: int, num_rows: int, num_steps: int) -> Floats:
    """(pending, rows - 1, steps before): how much of one more step lies beyond the verification."""
    verify = 1 + policy.verify_cost * np.arange(num_pending) - policy.draft_cost
    step = (policy.draft_cost + policy.branch_cost * np.arange(num_rows))[:, None]
    used = np.cumsum(np.concatenate([np.zeros((num_rows, 1)), np.repeat(step, num_steps - 1, axis=1)], axis=1), axis=1)
    late: Floats = np.minimum(step, np.maximum(0.0, used + step - verify[:, None, None]))
    return late

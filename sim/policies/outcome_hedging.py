"""Outcome hedging, ours: draft ahead for the most probable outcomes, submit what is expected to pay."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sim.policies.acceptance_guess import AcceptanceGuess
from sim.policies.base import Hedges, Needs, Observation, check_at_least
from sim.policies.specbranch import OnMiss
from traces.schema import Signal


@dataclass(frozen=True)
class OutcomeHedging(AcceptanceGuess):
    """Hedge the m outcomes of largest predicted weight, within what the draft can make during one verification.

    With beta_i the predicted acceptance of pending token i and rho_r the predicted law of the rank of the target's token
    after a rejection (ranks 1, 2, ...), the outcome "n accepted, then rank r" has the weight

        w(n, r) = beta_1 .. beta_n (1 - beta_{n+1}) rho_r                  (n < L)
        w(L, r) = beta_1 .. beta_L (beta' for r = 0, (1 - beta') rho_r else)

    beta' being the acceptance predicted at the frontier. Costs are in units of one target forward over one token: a draft
    forward of m rows costs draft_cost + branch_cost (m - 1), each pending token adds verify_cost to the verification. For
    every m the rows may grow while the verification lasts, at most draft_length tokens; the m with the largest expected
    gain is taken: hit probability times what a continuation of that length is worth against drafting it serially.

    Let R be the speed-up that the method reaches (`worth`: tokens a unit of time). The i-th token of a continuation, right
    with probability a^i (a = mean_acceptance), is worth a^i / R - verify_cost units of time if submitted, but no more than
    draft_cost, for which it could be drafted serially after the outcome is known. A continuation of s tokens is worth the sum.
    For the same reason a drafted token is submitted only while (probability that it is reached and right) / R exceeds
    verify_cost, and drafting serially goes on only while it exceeds verify_cost + draft_cost.

    This contains SpecBranch's branch point, PEARL and SSD (tests show the reductions): `only_frontier` keeps the hedges at
    n = L, max_branches = 1 leaves PEARL's single one, slope = 0 makes the weights those of a constant acceptance.
    """

    draft_length: int = 8
    max_branches: int = 12
    draft_cost: float = 0.1
    branch_cost: float = 0.01
    verify_cost: float = 0.05
    worth: float = 1.8
    mean_acceptance: float = 0.65
    rank_decay: float = 0.45
    rank_tail: float = 0.12
    on_miss: OnMiss = OnMiss.SERIAL
    only_frontier: bool = False
    is_full_length: bool = False

    def __post_init__(self) -> None:
        check_at_least(
            "draft_length", self.draft_length, 1, instead="for decoding without speculation use autoregressive."
        )
        check_at_least("max_branches", self.max_branches, 1, instead="1 hedges the likeliest outcome only.")
        for name in ("draft_cost", "branch_cost", "verify_cost"):
            check_at_least(name, getattr(self, name), 0, instead="give the measured share of a target forward.")
        if not 0 <= self.rank_decay < 1:
            raise ValueError(f"rank_decay must lie in [0, 1), but got {self.rank_decay}; 0.5 halves at every rank.")

    @property
    def needs(self) -> Needs:
        num_alternatives = self.max_branches if self.only_frontier else self.max_branches + 1
        return Needs(signals=bool(self.slope), num_alternatives=num_alternatives, tail_depth=self.draft_length + 1)

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        if self.on_miss is OnMiss.OVERLAP or len(pending) >= self.draft_length:
            return 0
        if self.is_full_length:
            return 0 if seen.was_hit else self.draft_length - len(pending)
        reached = self.mean_acceptance  # of the token to come; those before it have shown their signals
        for signal in pending:
            reached *= self.accept_probability(signal)
        return 1 if reached / self.worth > self.verify_cost + self.draft_cost else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        if self.is_full_length:
            return len(drafted)
        reached = 1.0
        for index, signal in enumerate(drafted):
            reached *= self.accept_probability(signal)
            if reached < self.verify_cost * self.worth:
                return index
        return len(drafted)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        outcomes = self.outcomes(pending, frontier)
        verify = 1 + self.verify_cost * len(pending) - self.draft_cost
        if self.is_full_length:
            count, num_steps = min(self.max_branches, len(outcomes)), self.draft_length
        else:
            count, num_steps = self._best_split(outcomes, verify)
        fanout = [0] * (len(pending) + 1)
        for _, num_accepted in outcomes[:count]:
            fanout[num_accepted] += 1
        return Hedges(tuple(fanout), num_steps)

    def outcomes(self, pending: Sequence[Signal], frontier: Signal) -> list[tuple[float, int]]:
        """The likeliest outcomes, (weight, number accepted), best first; at most max_branches.

        For one n the weights fall with the rank, so that a count for each n names the outcomes.
        """
        ranks = self.rank_law()
        found: list[tuple[float, int]] = []
        reached = 1.0
        for num_accepted, signal in enumerate(pending):
            beta = self.accept_probability(signal)
            if not self.only_frontier:
                found += [(reached * (1 - beta) * rho, num_accepted) for rho in ranks]
            reached *= beta
        last = len(pending)
        beta = self.accept_probability(frontier)
        found.append((reached * beta, last))
        found += [(reached * (1 - beta) * rho, last) for rho in ranks]
        found.sort(key=lambda outcome: -outcome[0])
        return found[: self.max_branches]

    def rank_law(self) -> list[float]:
        """rho_1, rho_2, ...: a geometric head and a mass rank_tail beyond all hedged ranks."""
        head = (1 - self.rank_decay) * (1 - self.rank_tail)
        return [head * self.rank_decay**rank for rank in range(self.max_branches)]

    def _best_split(self, outcomes: list[tuple[float, int]], verify: float) -> tuple[int, int]:
        """How many rows and how far: the largest expected gain in units of time. Drafting within the verification is free,
        beyond it the target waits."""
        values = token_values(self.draft_length, self.mean_acceptance, self.worth, self.draft_cost, self.verify_cost)
        best, chosen, hit = 0.0, (1, 0), 0.0
        for count, (weight, _) in enumerate(outcomes, 1):
            hit += weight
            step = self.draft_cost + self.branch_cost * (count - 1)
            gain = used = 0.0
            num_steps = 0
            for value in values:
                late = min(step, max(0.0, used + step - verify))
                if hit * value <= late:
                    break
                gain += hit * value - late
                used += step
                num_steps += 1
            if gain > best:
                best, chosen = gain, (count, num_steps)
        return chosen


@functools.lru_cache(maxsize=256)
def token_values(
    length: int, acceptance: float, worth: float, draft_cost: float, verify_cost: float
) -> tuple[float, ...]:
    """What the 1st, 2nd, ... token of a continuation is worth, in target forwards (see `OutcomeHedging`).

    >>> [round(value, 3) for value in token_values(3, 0.5, 2.0, 0.1, 0.05)]
    [0.1, 0.075, 0.013]
    """
    return tuple(max(0.0, min(draft_cost, acceptance**index / worth - verify_cost)) for index in range(1, length + 1))

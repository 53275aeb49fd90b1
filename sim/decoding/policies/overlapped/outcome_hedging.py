"""Outcome hedging, ours: draft ahead for the most probable outcomes, submit what is expected to pay."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from sim.decoding.policies.acceptance_guess import AcceptanceGuess
from sim.decoding.policies.base import Hedges, Needs, Observation, check_at_least, further_setting
from sim.decoding.policies.overlapped.saguaro import FanOut, fan_outs
from sim.decoding.policies.overlapped.specbranch import ACCEPT, CONFIDENCE, branch_count, likeliest_class
from traces.schema import UNKNOWN_SIGNAL, Signal


class Choice(enum.StrEnum):
    """Which outcomes are hedged; all but the first are those of other methods."""

    HEAVIEST = "heaviest"  # by predicted weight, wherever they are
    FRONTIER = "frontier"  # after all pending tokens: PEARL with one branch, SpecBranch with a fixed count
    CONFIDENCE = "confidence"  # there, and the fewer the surer the draft is of the best one: SpecBranch's count
    UNIFORM = "uniform"  # as many for each number of accepted tokens: SSD
    GEOMETRIC = "geometric"  # SSD's fan-outs for a constant acceptance


@dataclass(frozen=True)
class OutcomeHedging(AcceptanceGuess):
    """Hedge the max_branches outcomes of largest predicted weight, each by draft_length tokens.

    With beta_i the predicted acceptance of pending token i and rho_r = (1 - d) d^(r - 1), d = rank_decay, the predicted law
    of the rank r of the target's token after a rejection, the outcome "n accepted, then rank r" has the weight

        w(n, r) = beta_1 .. beta_n (1 - beta_{n+1}) rho_r                  (n < L)
        w(L, r) = beta_1 .. beta_L (beta' for r = 0, (1 - beta') rho_r else)

    beta' being the acceptance predicted at the frontier. slope = 0 makes it constant: then no signal is read, and reading
    costs time.

    A drafted token is submitted while the chance that it and all before it are right is at least least_reach. Submitting it
    pays while that chance / R exceeds v, R being the speed-up reached (tokens in the time of a target forward) and v what a
    further token adds to a verification in target forwards: least_reach = v R; 0 where further tokens are free. A single
    token below least_acceptance ends the window, too (SpecBranch's epsilon). With uses_hrad the predicted class may overrule
    that: nothing is submitted when it says reject, everything when it says accept. After a miss up to serial_length tokens are
    drafted while the target waits; 0 lets it go on at once, so that it pre-verifies the hedges of an empty window.

    How many branches the draft can carry behind one verification follows from the measured time of a batched step, which
    the simulator knows: it chooses draft_length and max_branches. Other methods are special cases, with their very
    rounds: see `as_outcome_hedging`. num_further: the hedges go on, by so many more tokens at most, until the verdict comes.
    """

    draft_length: int = 5
    max_branches: int = 12
    serial_length: int = 0
    least_reach: float = 0.05
    least_acceptance: float = 0.0
    hedges: Choice = Choice.HEAVIEST
    rank_decay: float = 0.6
    uses_hrad: bool = False
    num_further: int = further_setting()

    def __post_init__(self) -> None:
        check_at_least("draft_length", self.draft_length, 0, instead="0 hedges the next token only.")
        check_at_least("max_branches", self.max_branches, 0, instead="0 hedges nothing, as speculative sampling.")
        check_at_least("serial_length", self.serial_length, 0, instead="0 never lets the target wait.")
        check_at_least("num_further", self.num_further, 0, instead="0 ends the draft at draft_length.")
        if not 0 <= self.rank_decay < 1:
            raise ValueError(f"rank_decay must lie in [0, 1), but got {self.rank_decay}; 0.5 halves at every rank.")
        if self.hedges is Choice.GEOMETRIC and self.slope:
            raise ValueError("geometric fan-outs follow from a constant acceptance; give slope=0.")

    @property
    def needs(self) -> Needs:
        if self.hedges is Choice.HEAVIEST:
            num_alternatives = self.max_branches + 1  # n < L leaves the best one out
        elif self.hedges in (Choice.FRONTIER, Choice.CONFIDENCE):
            num_alternatives = max(1, self.max_branches)
        else:
            num_alternatives = 1 + max(max(self.fan_outs(n)) for n in range(self.draft_length + 1))
        return Needs(
            signals=bool(self.slope) or self.hedges is Choice.CONFIDENCE,
            num_alternatives=num_alternatives,
            tail_depth=max(self.draft_length + self.num_further, self.serial_length) + 1,
            classes=self.uses_hrad,
            class_window=max(self.draft_length, self.serial_length) if self.uses_hrad else 0,
            is_timed=self.num_further > 0,
            drafts=self.max_branches + self.serial_length > 0,
        )

    @property
    def overlaps(self) -> bool:
        return self.max_branches > 0

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        room = self.serial_length - len(pending)
        if seen.was_hit or room <= 0:
            return 0
        kind = self._class_of(seen)
        if kind != CONFIDENCE:
            return room if kind == ACCEPT else 0
        return 1 if self.keep(seen, pending) == len(pending) else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        kind = self._class_of(seen)
        if kind != CONFIDENCE:
            return len(drafted) if kind == ACCEPT else 0
        reached = 1.0
        for index, signal in enumerate(drafted):
            beta = self.accept_probability(signal)
            reached *= beta
            if beta < self.least_acceptance or reached < self.least_reach:
                return index
        return len(drafted)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        if self.hedges is Choice.HEAVIEST:
            counts = [0] * (len(pending) + 1)
            for _, num_accepted in self.outcomes(pending, frontier)[: self.max_branches]:
                counts[num_accepted] += 1
            fanout = tuple(counts)
        elif self.hedges in (Choice.UNIFORM, Choice.GEOMETRIC):
            fanout = self.fan_outs(len(pending))
        else:
            count = self.max_branches
            if self.hedges is Choice.CONFIDENCE:
                count = branch_count(count, frontier)
            fanout = (0,) * len(pending) + (count,)
        return Hedges(fanout, self.draft_length, self.num_further)

    def outcomes(self, pending: Sequence[Signal], frontier: Signal) -> list[tuple[float, int]]:
        """Outcomes as (weight, number accepted), the heaviest first.

        For one n the weights fall with the rank, so that a count for each n names the outcomes.
        """
        ranks = [(1 - self.rank_decay) * self.rank_decay**rank for rank in range(self.max_branches)]
        outcomes: list[tuple[float, int]] = []
        reached = 1.0
        for num_accepted, signal in enumerate(pending):
            beta = self.accept_probability(signal)
            outcomes += [(reached * (1 - beta) * rho, num_accepted) for rho in ranks]
            reached *= beta
        beta = self.accept_probability(frontier)
        outcomes.append((reached * beta, len(pending)))
        outcomes += [(reached * (1 - beta) * rho, len(pending)) for rho in ranks]
        outcomes.sort(key=lambda outcome: -outcome[0])
        return outcomes

    def _class_of(self, seen: Observation) -> int:
        return likeliest_class(seen) if self.uses_hrad else CONFIDENCE

    def fan_outs(self, num_pending: int) -> tuple[int, ...]:
        """SSD's, with max_branches for a full window and in proportion for a shorter one."""
        budget = self.max_branches * (num_pending + 1) // (self.draft_length + 1)
        spread = FanOut.GEOMETRIC if self.hedges is Choice.GEOMETRIC else FanOut.UNIFORM
        return fan_outs(num_pending, budget, spread, self.accept_probability(UNKNOWN_SIGNAL))

"""Another method at another load: each question goes to the policy of the present number of running requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.decoding.policies.base import Hedges, Needs, Observation, Policy, Verdict
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.serial.autoregressive import Autoregressive
from traces.schema import Signal


@dataclass(frozen=True)
class ByLoad:
    """levels: (fewest running requests, policy), rising; the first level begins at 1, the last one has no end.

    A request that has its devices to itself runs the first level. What was drafted under one level is verified under the
    next; every level learns from every verdict.
    """

    levels: tuple[tuple[int, Policy], ...]

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.levels]
        if not firsts or firsts[0] != 1 or firsts != sorted(set(firsts)):
            raise ValueError(f"levels of load must begin at 1 running request and rise, but begin at {firsts}.")

    def at(self, num_running: int) -> Policy:
        """The policy for so many running requests."""
        return self.levels[self._level(num_running)][1]

    @property
    def needs(self) -> Needs:
        every = [policy.needs for _, policy in self.levels]
        return Needs(
            signals=any(needs.signals for needs in every),
            num_alternatives=max(needs.num_alternatives for needs in every),
            tail_depth=max(needs.tail_depth for needs in every),
            classes=any(needs.classes for needs in every),
            class_window=max(needs.class_window for needs in every),
            drafts=any(needs.drafts for needs in every),
            learns=any(needs.learns for needs in every),
            is_timed=any(needs.is_timed for needs in every),
        )

    @property
    def overlaps(self) -> bool:
        return any(policy.overlaps for _, policy in self.levels)

    def looks(self, seen: Observation, pending: Sequence[Signal]) -> bool:
        policy, seen = self._of(seen)
        return policy.looks(seen, pending)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        policy, seen = self._of(seen)
        return policy.draft_more(seen, pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        policy, seen = self._of(seen)
        return policy.keep(seen, drafted)

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        policy, seen = self._of(seen)
        return policy.hedge(seen, pending, frontier)

    def learn(self, memory: Any, verdict: Verdict) -> Any:
        known = memory or (None,) * len(self.levels)
        return tuple(policy.learn(own, verdict) for (_, policy), own in zip(self.levels, known, strict=True))

    def _level(self, num_running: int) -> int:
        return max(index for index, (first, _) in enumerate(self.levels) if first <= max(num_running, 1))

    def _of(self, seen: Observation) -> tuple[Policy, Observation]:
        """The present level's policy, and what it may see: its own memory."""
        level = self._level(1 if seen.load is None else seen.load.num_running)
        memory = None if seen.memory is None else seen.memory[level]
        return self.levels[level][1], seen._replace(memory=memory)


def hedging_by_load(hedging: OutcomeHedging, row_budget: int, *, at_most: int = 1024) -> ByLoad:
    """Outcome hedging, ours, whose branches shrink as the batch grows: all requests together get row_budget rows of the draft.

    hedging: what a request alone does, with at most its max_branches. A batch that leaves no row for each request decodes
    without speculation. Levels double up to at_most running requests.

    >>> [policy.max_branches for _, policy in hedging_by_load(OutcomeHedging(max_branches=8), 16).levels[:5]]
    [8, 8, 4, 2, 1]
    """
    if row_budget < 1:
        raise ValueError(f"row_budget must be at least 1 row of the draft, but got {row_budget}.")
    levels: list[tuple[int, Policy]] = []
    num_running = 1
    while num_running <= at_most:
        rows = min(hedging.max_branches, row_budget // num_running)
        levels.append((num_running, replace(hedging, max_branches=rows) if rows else Autoregressive()))
        if not rows:
            break
        num_running *= 2
    return ByLoad(tuple(levels))

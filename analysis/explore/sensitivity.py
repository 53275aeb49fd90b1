"""How much the answer depends on each number of the latency model: move it to the ends of its interval and choose again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.explore.work.evaluation import Timing, Workload, speeds_under
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.latency.uncertain import Uncertain

NUM_CONTENDERS = 12


@dataclass(frozen=True, kw_only=True)
class ParameterEffect:
    """One number of a latency model at one end of its 95% interval.

    best: label of the fastest contender then. speed_change: of the policy chosen before, relative. regret: what keeping that
    policy would lose against `best`, relative.
    """

    group: str
    term: str
    fitted: float
    moved_to: float
    best: str
    speed_change: float
    regret: float

    @property
    def flips(self) -> bool:
        """Whether another policy would have been chosen."""
        return self.regret > 0


def parameter_effects(
    workload: Workload, timing: Timing, contenders: Sequence[Policy], chosen: Policy
) -> list[ParameterEffect]:
    """Effects of every number on the choice among the contenders, largest regret first; mean latencies. None for a model that
    does not say how sure it is."""
    if not isinstance(workload.latency, Uncertain):
        return []
    policies = list(dict.fromkeys([chosen, *contenders[:NUM_CONTENDERS]]))
    moves = workload.latency.moved()
    speeds = speeds_under(workload, timing, policies, [workload.latency, *(move.latency for move in moves)])
    effects = []
    for move, moved_speeds in zip(moves, speeds[1:], strict=True):
        best = int(np.argmax(moved_speeds))  # the first of equals, so the chosen one where nothing beats it
        effects.append(
            ParameterEffect(
                group=move.group,
                term=move.term,
                fitted=move.value,
                moved_to=move.moved_to,
                best=label_of(policies[best]),
                speed_change=float(moved_speeds[0] / speeds[0, 0] - 1),
                regret=float(1 - moved_speeds[0] / moved_speeds[best]),
            )
        )
    return sorted(effects, key=lambda effect: -effect.regret)

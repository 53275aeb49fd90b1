"""A designed experiment in the shape of a policy: every round asks for other widths, so that their costs can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sim.decoding.policies.base import NO_HEDGES, Defaults, Hedges, Needs, Observation, check_at_least
from traces.schema import Signal


class _Act(NamedTuple):
    """What the draft does during a verification: rows and steps of the hedges after the pending tokens."""

    num_branches: int
    num_steps: int


_LENGTHS = (0, 1, 2, 3, 4, 0, 5, 6, 8)  # nothing pending twice as often: plain decoding is measured at that width only
_ACTS: tuple[_Act | None, ...] = (None, _Act(1, 3), _Act(1, 1), None, _Act(1, 6), _Act(3, 2))  # None: the draft waits
_MAX_STEPS = max(act.num_steps for act in _ACTS if act is not None)
_STRIDE = 25  # has no factor in common with the number of combinations, so that all of them have their turn


@dataclass(frozen=True)
class Probe(Defaults):
    """No method to decode with, but the one speculative setting that a calibration needs (`specbranch record`).

    The rounds go through combinations of 0 to 8 pending tokens with a draft that waits, or works ahead on one row or
    several, for one step or many. So verifications of all widths are timed beside a working draft and without one, and
    draft forwards after short and long waits. The round and what was accepted so far choose, so that requests differ.

    max_length: caps the pending tokens, max_branches the rows.
    """

    max_length: int = 8
    max_branches: int = 3

    def __post_init__(self) -> None:
        check_at_least("max_length", self.max_length, 1, instead="for decoding without speculation use autoregressive.")
        check_at_least("max_branches", self.max_branches, 1, instead="1 hedges one outcome at a time.")

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, num_alternatives=self.max_branches, tail_depth=max(self.max_length, _MAX_STEPS + 1))

    @property
    def overlaps(self) -> bool:
        return True

    def looks(self, seen: Observation, pending: Sequence[Signal]) -> bool:
        return self._act_of(seen) is not None

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self._length_of(seen) - len(pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return min(len(drafted), self._length_of(seen))

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        act = self._act_of(seen)
        if act is None:
            return NO_HEDGES
        return Hedges((0,) * len(pending) + (min(act.num_branches, self.max_branches),), act.num_steps)

    def _length_of(self, seen: Observation) -> int:
        return min(_LENGTHS[_turn(seen) // len(_ACTS)], self.max_length)

    def _act_of(self, seen: Observation) -> _Act | None:
        return _ACTS[_turn(seen) % len(_ACTS)]


def _turn(seen: Observation) -> int:
    return (seen.num_rounds * _STRIDE + seen.num_accepted) % (len(_LENGTHS) * len(_ACTS))

"""Settings of one method by predicted speed: from starts that formulas give, widened until no neighbour is better."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.decoding.policies.base import Policy

MAX_TRIED = 4000  # policies of one family: far beyond what a search has needed
_BEAM = 3  # of the best policies so far, whose neighbours are tried together

Measure = Callable[[Sequence[Policy]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values that some settings of a policy may take.

    settings: their names. values: a combination of values for each step along the axis, in an order where neighbours
    behave alike; without any order for a choice. limit: why the last value is the last one, where that is not the method's
    own end: an optimum there is flagged with it.
    """

    settings: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    is_choice: bool = False
    limit: str = ""

    @classmethod
    def of(cls, setting: str, values: Sequence[Any], *, is_choice: bool = False, limit: str = "") -> Axis:
        """An axis of one setting."""
        return cls(settings=(setting,), values=tuple((value,) for value in values), is_choice=is_choice, limit=limit)

    def value_of(self, policy: Any) -> tuple[Any, ...]:
        """Where a policy stands. Any: the settings' names are known here only."""
        return tuple(getattr(policy, setting) for setting in self.settings)

    def neighbours(self, policy: Any) -> Iterator[Policy]:
        """The policy at other values of the axis: at all of a choice, else 1, 2, 4 ... steps away on both sides."""
        if self.is_choice:
            return self._at(policy, range(len(self.values)))
        away = [1 << power for power in range(len(self.values).bit_length())]
        return self._at(policy, [sign * step for step in away for sign in (-1, 1)], is_relative=True)

    def next_to(self, policy: Any) -> Iterator[Policy]:
        """The policy one step away on both sides."""
        return self._at(policy, (-1, 1), is_relative=True)

    def _at(self, policy: Any, steps: Sequence[int], *, is_relative: bool = False) -> Iterator[Policy]:
        value = self.value_of(policy)
        first = self._step_of(value) if is_relative else 0
        for step in steps:
            if 0 <= first + step < len(self.values) and self.values[first + step] != value:
                settings = dict(zip(self.settings, self.values[first + step], strict=True))
                try:
                    moved = dataclasses.replace(policy, **settings)
                except ValueError:  # settings that exclude each other: no neighbour there
                    continue
                yield moved

    def is_at_limit(self, policy: Policy) -> bool:
        """Whether a policy stands at an end that is not the method's own."""
        return bool(self.limit) and len(self.values) > 1 and self.value_of(policy) == self.values[-1]

    def _step_of(self, value: tuple[Any, ...]) -> int:
        if value in self.values:
            return self.values.index(value)
        if len(value) > 1:  # a combination that a start brought along
            return 0
        return min(len(self.values) - 1, sum(known < value for known in self.values))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One method with the settings that are free. starts: policies to try first, which belong to it. is_allowed: whether
    a policy may be tried, a start or not."""

    starts: tuple[Policy, ...]
    axes: tuple[Axis, ...] = ()
    is_allowed: Callable[[Policy], bool] = lambda policy: True

    def neighbours(self, policy: Policy) -> Iterator[Policy]:
        """Along every axis, and one step on two axes at once (a shorter draft with more branches)."""
        return filter(self.is_allowed, self._around(policy))

    def _around(self, policy: Policy) -> Iterator[Policy]:
        for axis in self.axes:
            yield from axis.neighbours(policy)
        ordered = [axis for axis in self.axes if not axis.is_choice]
        for index, first in enumerate(ordered):
            for second in ordered[index + 1 :]:
                for moved in first.next_to(policy):
                    yield from second.next_to(moved)

    def far_neighbours(self, policy: Policy) -> Iterator[Policy]:
        """Any step along one axis with one step on another (a draft longer by one with a quarter of the branches): out of an
        optimum of `neighbours` alone."""
        ordered = [axis for axis in self.axes if not axis.is_choice]
        for first, second in itertools.permutations(ordered, 2):
            for moved in first.next_to(policy):
                yield from filter(self.is_allowed, second.neighbours(moved))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The choice for one family. tokens_per_s: predicted. num_tried: policies whose speed was predicted. limits: why it may
    not be the family's best: settings that stand at an end, and the reason for that end.
    remark: a sentence on what it stands in place of."""

    policy: Policy
    tokens_per_s: float
    num_tried: int
    limits: tuple[str, ...] = ()
    remark: str = ""


def tune(family: Family, measure: Measure, *, max_tried: int = MAX_TRIED) -> Chosen:
    """The fastest policy of a family: the best start, then whatever neighbour is better, until none is,
    near or far.

    measure: (policies) -> (policies,) predicted tokens/s. max_tried: the search ends there, its starts are tried in any case.
    Of equally fast policies the one that was tried first is chosen. A pattern search (Hooke and Jeeves 1961, doi:10.1145/
    321062.321069) from several points, with all step lengths at once because a sweep of many policies costs little more than
    one of few.
    """
    speeds: dict[Policy, float] = {}
    expanded: set[Policy] = set()
    left: set[Policy] = set()  # local optima whose far neighbours were tried
    waiting = list(filter(family.is_allowed, dict.fromkeys(family.starts)))
    while waiting:
        speeds |= zip(waiting, measure(waiting).tolist(), strict=True)
        best = _leading(speeds)
        around = [policy for policy in best if policy not in expanded]
        expanded.update(around)
        neighbours = dict.fromkeys(near for policy in around for near in family.neighbours(policy))
        waiting = [policy for policy in neighbours if policy not in speeds][: max(0, max_tried - len(speeds))]
        if not waiting:
            leaving = [policy for policy in best if policy not in left]
            left.update(leaving)
            away = dict.fromkeys(far for policy in leaving for far in family.far_neighbours(policy))
            waiting = [policy for policy in away if policy not in speeds][: max(0, max_tried - len(speeds))]
    policy = max(speeds, key=lambda policy: speeds[policy])
    limits = tuple(
        f"{' and '.join(axis.settings)} at {_in_words(axis.value_of(policy))}: {axis.limit}"
        for axis in family.axes
        if axis.is_at_limit(policy)
    )
    return Chosen(policy=policy, tokens_per_s=speeds[policy], num_tried=len(speeds), limits=limits)


def _leading(speeds: Mapping[Policy, float]) -> list[Policy]:
    """The best few, of equally fast ones the first alone (more branches than there are ranks to hit change nothing)."""
    by_speed: dict[float, Policy] = {}
    for policy, speed in speeds.items():
        by_speed.setdefault(round(speed, 9), policy)
    return [by_speed[speed] for speed in sorted(by_speed, reverse=True)[:_BEAM]]


def _in_words(value: tuple[Any, ...]) -> str:
    return ", ".join(str(part) for part in value)

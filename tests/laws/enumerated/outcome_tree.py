"""Every path through a program's random choices: run it again and again, each time along the next path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Makes choices, and remembers which are still to be made.

    >>> chance, found = Chance(), []
    >>> while True:
    ...     coins = "hh" if chance.pick([(0.25, True), (0.75, False)]) else chance.pick([(0.5, "th"), (0.5, "tt")])
    ...     found.append((coins, chance.probability))
    ...     if not chance.advance():
    ...         break
    >>> found
    [('hh', 0.25), ('th', 0.375), ('tt', 0.375)]
    """

    def __init__(self) -> None:
        self._path: list[int] = []  # which option was taken at each choice
        self._num_options: list[int] = []
        self._depth = 0
        self.probability = 1.0  # of the path so far

    def pick(self, options: Sequence[tuple[float, T]]) -> T:
        """One of the options, (probability, value) each; options must be the same whenever this path is run again."""
        if self._depth == len(self._path):
            self._path.append(0)
            self._num_options.append(len(options))
        probability, value = options[self._path[self._depth]]
        self._depth += 1
        self.probability *= probability
        return value

    def advance(self) -> bool:
        """Begin the next path; False when there is none left, and then all over again."""
        while self._path and self._path[-1] + 1 == self._num_options[-1]:
            self._path.pop()
            self._num_options.pop()
        if self._path:
            self._path[-1] += 1
        self._depth = 0
        self.probability = 1.0
        return bool(self._path)

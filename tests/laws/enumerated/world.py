"""A world for enumeration: it answers the step machine about one request from next-token tables.

What is random it asks of `Draws`: `tests.laws.enumerated.draws` holds the models of shared and of private noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from sim.decoding.machine import Branch, ClassProbs, Close, Command, DraftTokens, Keep, Look, Reply, Settled, Submit
from sim.decoding.policies.base import Needs
from traces.schema import UNKNOWN_SIGNAL, Signal

Tokens: TypeAlias = tuple[int, ...]
ClassesOf: TypeAlias = Callable[[Tokens], ClassProbs]


class Laws(Protocol):
    """Next-token laws of a pair: what a world asks of `tests.laws.enumerated.law.TinyPair`."""

    @property
    def vocab_size(self) -> int: ...

    def target_law(self, prefix: Tokens) -> tuple[float, ...]: ...

    def draft_law(self, prefix: Tokens) -> tuple[float, ...]: ...


class Draws(Protocol):
    """The random part of a world. `prefix` is what was generated before the position in question."""

    def restart(self) -> None:
        """Forget one path."""

    def begin_round(self, position: int) -> None:
        """A round begins with this many committed tokens."""

    def draft(self, prefix: Tokens) -> int:
        """The draft's token."""

    def signal(self, prefix: Tokens) -> Signal:
        """How sure the draft is there."""

    def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
        """The emitted token, and whether it is one of the hedged ones: the draft's best, a pending token excluded."""


class EnumeratedWorld:
    """Answers the step machine's commands about one request."""

    def __init__(self, draws: Draws, needs: Needs, length: int, classes: ClassesOf | None, eos: int | None) -> None:
        self._draws, self._length, self._eos = draws, length, eos
        self._classes = classes if needs.classes else None
        self._has_signals = needs.signals
        self.committed: list[int] = []
        self._pending: list[int] = []
        self._ahead: list[int] = []
        self._fanout: tuple[int, ...] = ()
        self._num_steps = 0

    @property
    def first_classes(self) -> ClassProbs | None:
        """H-RAD's prediction after the committed tokens, of which there are none at first."""
        return self._classes(tuple(self.committed)) if self._classes else None

    def answer(self, command: Command) -> Reply:
        """What came of a command."""
        if isinstance(command, DraftTokens):
            prefix = (*self.committed, *self._pending)
            tokens, signals = self._draft(prefix, command.num_tokens)
            self._pending += tokens
            return signals
        if isinstance(command, Submit):
            del self._pending[command.num_pending :]
            self._fanout, self._num_steps = (), 0
        elif isinstance(command, Look):
            return self._signal((*self.committed, *self._pending))
        elif isinstance(command, Branch):
            self._fanout, self._num_steps = command.fanout, command.num_steps
        elif isinstance(command, Keep):
            self._pending = self._ahead[: command.num_kept]
        elif isinstance(command, Close):
            self._draws.begin_round(len(self.committed))
        else:
            return self._settle()
        return None

    def _settle(self) -> Settled:
        pending, self._pending = self._pending, []
        start, num_accepted = tuple(self.committed), 0
        while True:
            prefix = (*start, *pending[:num_accepted])
            expected = pending[num_accepted] if num_accepted < len(pending) else None
            num_hedges = self._fanout[num_accepted] if self._fanout else 0
            token, is_hit = self._draws.settle(prefix, expected, num_hedges)
            if token != expected:
                break
            num_accepted += 1
            if token == self._eos or len(start) + num_accepted == self._length:  # ended within the accepted tokens
                self.committed += pending[:num_accepted]
                return Settled(num_accepted, num_accepted, True, -1, False, (), None)
        self.committed += [*pending[:num_accepted], token]
        is_finished = token == self._eos or len(self.committed) == self._length
        self._ahead = []
        signals: list[Signal] = []
        if is_hit := is_hit and not is_finished:
            self._ahead, signals = self._draft(tuple(self.committed), self._num_steps)
        return Settled(num_accepted, num_accepted + 1, is_finished, -1, is_hit, tuple(signals), self.first_classes)

    def _draft(self, prefix: Tokens, num_tokens: int) -> tuple[list[int], list[Signal]]:
        tokens: list[int] = []
        signals = []
        for _ in range(num_tokens):
            here = (*prefix, *tokens)
            tokens.append(self._draws.draft(here))
            signals.append(self._signal(here))
        return tokens, signals

    def _signal(self, prefix: Tokens) -> Signal:
        return self._draws.signal(prefix) if self._has_signals else UNKNOWN_SIGNAL

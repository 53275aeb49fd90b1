"""Worlds for enumeration: they answer the step machine from tables, and branch over every random outcome.

Two models of the draws. `SharedNoise` keeps, for every position, the set of noise vectors that agrees with all that was
seen; the noise of a position is drawn once, however often the position is drafted. `PrivateNoise` draws each draft token
afresh, and each acceptance test once. Draws that nobody looked at are made when they are first looked at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from sim import verification_laws as laws
from sim.machine import Branch, ClassProbs, Close, Command, DraftTokens, Keep, Look, Reply, Settled, Submit
from sim.noise_regions import Region, by_margin, by_order, everything
from sim.outcome_tree import Chance
from sim.policies.base import Needs
from traces.schema import UNKNOWN_SIGNAL, Signal

Tokens: TypeAlias = tuple[int, ...]
ClassesOf: TypeAlias = Callable[[Tokens], ClassProbs]


class Laws(Protocol):
    """Next-token laws of a pair: what a world asks of `sim.enumeration.TinyPair`."""

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
    def class_probs(self) -> ClassProbs | None:
        """H-RAD's prediction after the committed tokens."""
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
            self._fanout, self._num_steps = command
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
        return Settled(num_accepted, num_accepted + 1, is_finished, -1, is_hit, tuple(signals), self.class_probs)

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


class SharedNoise:
    """One noise vector a position, for draft and target alike, known as far as it was looked at."""

    def __init__(self, pair: Laws, rule: laws.Rule, chance: Chance, margin_edges: Sequence[float]) -> None:
        self._pair, self._chance, self._edges = pair, chance, tuple(margin_edges)
        ends = [0.0, *self._edges, self._edges[-1] + 1 if self._edges else 1.0]
        self._margins = [(low + high) / 2 for low, high in zip(ends, ends[1:], strict=False)]
        self._everything = everything(pair.vocab_size)
        self._known: dict[int, Region] = {}

    def restart(self) -> None:
        self._known.clear()

    def begin_round(self, position: int) -> None:
        """Nothing: noise is a function of the position, not of the round."""

    def draft(self, prefix: Tokens) -> int:
        return self._order(prefix, 1)[0]

    def signal(self, prefix: Tokens) -> Signal:
        probs = self._pair.draft_law(prefix)
        return _signal_of(probs, lambda: self._margin(prefix, probs))

    def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
        hedged: list[int] = []
        if num_hedges:
            order = self._order(prefix, num_hedges + (pending is not None))
            hedged = [token for token in order if token != pending][:num_hedges]
        probs = self._pair.target_law(prefix)
        token = self._ask(self.noise_of(len(prefix), "target"), by_order, probs, 1)[0]
        return token, token in hedged

    def noise_of(self, position: int, actor: str) -> int:
        """Which noise vector an actor uses at a position. Tests replace this to see the proof fail."""
        return position

    def _margin(self, prefix: Tokens, probs: tuple[float, ...]) -> float:
        return self._margins[self._ask(self.noise_of(len(prefix), "draft"), by_margin, probs, self._edges)[0]]

    def _order(self, prefix: Tokens, depth: int) -> Tokens:
        return self._ask(self.noise_of(len(prefix), "draft"), by_order, self._pair.draft_law(prefix), depth)

    def _ask(self, key: int, question: Callable[..., list[tuple[float, Tokens, Region]]], *about: object) -> Tokens:
        found = question(self._known.get(key, self._everything), *about)
        answer, self._known[key] = self._chance.pick([(chance, (tokens, part)) for chance, tokens, part in found])
        return answer


class PrivateNoise:
    """The draft draws with noise of its own, fresh at every draft; the target tests, and draws a correction.

    Pending tokens are single candidates. Hedged tokens are further candidates of RATIO, which tests them too; of
    TOP_PLUS_SAMPLE, which tests one only where nothing is pending (the branch point); and of POINT_MASS.
    A token that the policy withdrew is never used again: what the policy saw after it may depend on it.
    """

    def __init__(self, pair: Laws, rule: laws.Rule, chance: Chance, margin_edges: Sequence[float]) -> None:
        self._pair, self._rule, self._chance = pair, rule, chance
        self._laws: dict[object, list[tuple[float, int]]] = {}
        self._trials: dict[object, laws.Trial] = {}

    def restart(self) -> None:
        """Nothing: no draw is kept."""

    def begin_round(self, position: int) -> None:
        """Nothing."""

    def draft(self, prefix: Tokens) -> int:
        return self._candidate(self._pair.draft_law(prefix), (), 1)

    def signal(self, prefix: Tokens) -> Signal:
        probs = self._pair.draft_law(prefix)
        if self._rule is not laws.Rule.POINT_MASS:
            return _signal_of(probs, _refuse_margin)
        second, best = sorted(probs)[-2:]
        return _signal_of(probs, lambda: math.log(best / second) if second > 0 else math.inf)

    def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
        draft_probs, target_probs = self._pair.draft_law(prefix), self.target_law(prefix)
        candidates: Tokens = () if pending is None else (pending,)
        lookups: Tokens = ()
        for _ in range(min(num_hedges, self._pair.vocab_size - len(candidates))):
            if pending is not None and self._rule is laws.Rule.TOP_PLUS_SAMPLE:
                taken = (pending, *lookups)
                lookups += (self._candidate(draft_probs, taken, len(taken) + 2),)
            else:
                most = min(num_hedges, self._pair.vocab_size)
                candidates += (self._candidate(draft_probs, candidates, most),)
        hedged = (*candidates[pending is not None :], *lookups)
        key = target_probs, draft_probs, candidates
        if key not in self._trials:
            self._trials[key] = laws.trial(self._rule, np.array(target_probs), np.array(draft_probs), candidates)
        tested, chances, remainder = self._trials[key]
        for token, accept in zip(tested, chances, strict=True):
            if self.test(len(prefix), accept):
                return token, token in hedged
        token = self._chance.pick([(chance, token) for token, chance in enumerate(remainder.tolist()) if chance > 0])
        return token, token in hedged

    def target_law(self, prefix: Tokens) -> tuple[float, ...]:
        """The law that tests and corrections use. Tests replace this to see the proof fail."""
        return self._pair.target_law(prefix)

    def test(self, position: int, chance: float) -> bool:
        """One acceptance test with a uniform number of its own. Tests replace this to see the proof fail."""
        options = [(chance, True), (1 - chance, False)]
        return self._chance.pick([option for option in options if option[0] > 0])

    def _candidate(self, draft_probs: tuple[float, ...], earlier: Tokens, num_candidates: int) -> int:
        key = draft_probs, earlier, num_candidates
        if key not in self._laws:
            law = laws.candidate_law(self._rule, np.array(draft_probs), earlier, num_candidates)
            self._laws[key] = [(chance, token) for token, chance in enumerate(law.tolist()) if chance > 0]
        return self._chance.pick(self._laws[key])


class _LateSignal(Signal):
    """A signal whose margin is looked at only when the policy reads it: what nobody reads needs no branches."""

    _read: Callable[[], float]

    @property
    def margin(self) -> float:  # a tuple's field, computed late
        return self._read()

    def __iter__(self) -> Iterator[float]:
        return iter((self.max_prob, self.entropy, self.margin))

    def __getitem__(self, index: Any) -> Any:  # of the whole tuple, whatever the index
        return tuple(self)[index]


def _signal_of(probs: Sequence[float], read_margin: Callable[[], float]) -> Signal:
    entropy = -sum(chance * math.log(chance) for chance in probs if chance > 0)
    signal = _LateSignal(max(probs), entropy, math.nan)
    signal._read = functools.cache(read_margin)
    return signal


def _refuse_margin() -> float:
    raise ValueError(
        "this policy reads the noisy margin, but under the ratio rules no decision may depend on the draft's own draw; "
        "read max_prob or entropy, or use the rule shared_noise."
    )

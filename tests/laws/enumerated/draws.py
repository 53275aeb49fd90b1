"""Random draws for enumeration, branching over every outcome: the noise of draft and target, as shared or as private.

`SharedNoise` keeps, for every position, the set of noise vectors that agrees with all that was seen; the noise of a
position is drawn once, however often the position is drafted. `PrivateNoise` draws each draft token afresh, and each
acceptance test once. Draws that nobody looked at are made when they are first looked at.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tests.laws import verification_laws as laws
from tests.laws.enumerated.outcome_tree import Chance
from tests.laws.enumerated.world import Laws, Tokens
from tests.laws.noise_regions import Region, by_margin, by_order, everything
from traces.schema import Signal


class SharedNoise:
    """One noise vector a position, for draft and target alike, known as far as it was looked at."""

    def __init__(self, pair: Laws, rule: laws.Rule, chance: Chance, margin_edges: Sequence[float]) -> None:
        self._pair, self._chance, self._edges = pair, chance, tuple(margin_edges)
        ends = [0.0, *self._edges, self._edges[-1] + 1 if self._edges else 1.0]
        self._margins = [(low + high) / 2 for low, high in itertools.pairwise(ends)]
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

"""Known defects of speculative decoders, each seeded on purpose: the enumeration must see every one of them.

A measure is 0 for the sound code (below 1e-12) and must exceed 1e-6 for the mutant: the distance of the emitted law
from the target's, or, for defects that cannot harm the law, the rejections of a draft that equals its target.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from sim.decoding.policies.base import Defaults, Needs, Observation
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.verification import Floats
from tests.laws import verification_laws as laws
from tests.laws.enumerated.draws import PrivateNoise, SharedNoise
from tests.laws.enumerated.law import TinyPair, autoregressive_law, random_pair, sequence_law, total_variation
from tests.laws.enumerated.world import Tokens
from tests.laws.verification_laws import Rule
from traces.schema import Sampling, Signal

PAIR = random_pair(np.random.default_rng(3), 3)
TWO = random_pair(np.random.default_rng(3), 2)
SAME = TinyPair(TWO.target_probs, TWO.target_probs)
TOP_P = PAIR.sampled(Sampling(1.0, top_p=0.7))
TARGET, DRAFT = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
FIXED = parse_policy("fixed_length:draft_length=2")


def law_error(rule: Rule = Rule.RATIO, noise: type | None = None, pair: TinyPair = PAIR) -> float:
    """Distance of four emitted tokens from the target's law."""
    found = sequence_law(FIXED, rule, pair, 4, noise=noise)
    return total_variation(found.probs, autoregressive_law(pair, 4))


def rejections(noise: type | None = None) -> float:
    """Tokens of a draft equal to its target that shared noise rejects."""
    return sequence_law(FIXED, Rule.SHARED_NOISE, SAME, 5, noise=noise).num_rejected


def must_differ(sound: float, broken: float) -> None:
    assert sound < 1e-12
    assert broken > 1e-6, f"the mutant lives: {broken:.1e}"


def test_always_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft's law is emitted in place of the target's."""
    sound = law_error()
    monkeypatch.setattr(laws, "accept_probability", lambda target, draft: 1.0)
    must_differ(sound, law_error())


def test_correcting_from_the_targets_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual = p: accepted tokens are counted twice, what the draft favours comes too often."""
    sound = law_error()
    monkeypatch.setattr(laws, "residual_law", lambda target, draft: target)
    must_differ(sound, law_error())


def test_testing_an_argmax_draft_with_its_soft_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """p / q with the softmax q though the token was the argmax: a point mass was proposed (the SpecBranch release)."""
    sound = law_error()

    def argmax_law(rule: Rule, draft_probs: Floats, earlier: Sequence[int], num_candidates: int) -> Floats:
        law: Floats = np.eye(len(draft_probs))[int(np.argmax(draft_probs))]
        return law

    monkeypatch.setattr(laws, "candidate_law", argmax_law)
    must_differ(sound, law_error())


def test_not_renormalising_after_a_draw_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second candidate is tested against q, though it was drawn from q without the first (SpecInfer's trap)."""
    proposals = laws.proposal_law(Rule.RATIO, DRAFT, 2)

    def error() -> float:
        parts = [chance * laws.emitted_law(Rule.RATIO, TARGET, DRAFT, tokens) for tokens, chance in proposals]
        return float(np.abs(sum(parts) - TARGET).sum() / 2)

    sound = error()
    monkeypatch.setattr(laws, "without", lambda draft, tokens: np.where(np.isin(np.arange(4), tokens), 0, draft))
    must_differ(sound, error())


def test_one_random_number_for_two_tests() -> None:
    """The same r decides two tokens in a row (PEARL): the first is right, the second too often accepted."""

    class Reused(PrivateNoise):
        def restart(self) -> None:
            self._uniforms: dict[int, tuple[float, float]] = {}

        def test(self, position: int, chance: float) -> bool:
            low, high = self._uniforms.get(position // 2, (0.0, 1.0))
            accept = min(max((chance - low) / (high - low), 0.0), 1.0)
            is_kept = super().test(position, accept)
            self._uniforms[position // 2] = (low, min(high, chance)) if is_kept else (max(low, chance), high)
            return is_kept

    must_differ(law_error(), law_error(noise=Reused))


def test_accepting_at_equality(monkeypatch: pytest.MonkeyPatch) -> None:
    """u <= p / q: a generator that can give 0 then accepts tokens that the target never emits."""
    target, draft = np.array([0.0, 0.5, 0.5]), np.array([0.5, 0.25, 0.25])
    grid = [0.0, 0.25, 0.5, 0.75]  # equidistant numbers, exact for these laws

    def error() -> float:
        law = np.zeros(3)
        for token, accept, residual in itertools.product(range(3), grid, grid):
            law[laws.verify(Rule.RATIO, target, draft, (token,), (accept,), residual).token] += draft[token] / 16
        return float(np.abs(law - target).sum() / 2)

    sound = error()
    monkeypatch.setattr(laws, "is_accepted", lambda uniform, chance: uniform <= chance)
    must_differ(sound, error())


def test_bonus_from_the_law_before_the_last_token() -> None:
    """Off by one after full acceptance: the bonus token is drawn from the row of the last draft token."""

    class Stale(PrivateNoise):
        def restart(self) -> None:
            self.begin_round(0)

        def begin_round(self, position: int) -> None:
            self._start, self._is_bonus = position, False

        def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
            self._is_bonus = pending is None and len(prefix) > self._start
            return super().settle(prefix, pending, num_hedges)

        def target_law(self, prefix: Tokens) -> tuple[float, ...]:
            return super().target_law(prefix[:-1] if self._is_bonus else prefix)

    must_differ(law_error(), law_error(noise=Stale))


def test_forgetting_top_p_on_the_draft() -> None:
    """Tokens are drawn from the unfiltered q and tested against the filtered one."""

    class Unfiltered(PrivateNoise):
        def draft(self, prefix: Tokens) -> int:
            return self._candidate(PAIR.draft_law(prefix), (), 1)

    must_differ(law_error(pair=TOP_P), law_error(noise=Unfiltered, pair=TOP_P))


class _BehindByOne:
    """A pair whose draft has not seen the newest token."""

    def __init__(self, pair: TinyPair) -> None:
        self.pair, self.vocab_size, self.is_behind = pair, pair.vocab_size, False

    def target_law(self, prefix: Tokens) -> tuple[float, ...]:
        return self.pair.target_law(prefix)

    def draft_law(self, prefix: Tokens) -> tuple[float, ...]:
        return self.pair.draft_law(prefix[:-1] if self.is_behind else prefix)


def test_leaving_the_drafts_cache_wrong_by_one_after_full_acceptance() -> None:
    """The draft goes on from a wrong context: the law is unharmed, but even a target equal to the draft rejects."""

    class Uncropped(SharedNoise):
        def __init__(self, pair: TinyPair, *others: object) -> None:
            self._behind = _BehindByOne(pair)
            super().__init__(self._behind, *others)  # type: ignore[arg-type]

        def restart(self) -> None:
            super().restart()
            self.begin_round(0)

        def begin_round(self, position: int) -> None:
            self._start = position
            self._behind.is_behind = position > 0 and self._was_bonus

        def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
            self._was_bonus = pending is None and len(prefix) > self._start
            return super().settle(prefix, pending, num_hedges)

    must_differ(rejections(), rejections(Uncropped))
    assert law_error(Rule.SHARED_NOISE, Uncropped) < 1e-12


def test_testing_against_another_context_than_the_draw() -> None:
    """The same cache defect when q is computed again for the test: now the law breaks too."""

    class Recomputed(PrivateNoise):
        def draft(self, prefix: Tokens) -> int:
            return self._candidate(self._pair.draft_law(prefix[:-1]), (), 1)

    must_differ(law_error(), law_error(noise=Recomputed))


@dataclass(frozen=True)
class Choosy(Defaults):
    """Drafts two tokens, and submits them only if the noise is favourable to the second."""

    @property
    def needs(self) -> Needs:
        return Needs(signals=True)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 2 - len(pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return len(drafted) if drafted[-1].margin > 1 else 0


def test_fresh_noise_for_a_position_that_is_drafted_twice() -> None:
    """Noise keyed by the round: a policy that reads it throws again until it likes what it sees."""

    class Rethrown(SharedNoise):
        def begin_round(self, position: int) -> None:
            self._known.clear()

    def error(noise: type) -> float:
        found = sequence_law(Choosy(), Rule.SHARED_NOISE, PAIR, 4, noise=noise)
        return total_variation(found.probs, autoregressive_law(PAIR, 4))

    must_differ(error(SharedNoise), error(Rethrown))


def test_noise_shifted_by_one_position_between_draft_and_target() -> None:
    """Each position still has noise of its own, so the law holds; but the two no longer agree."""

    class Shifted(SharedNoise):
        def noise_of(self, position: int, actor: str) -> int:
            return position + (actor == "target")

    must_differ(rejections(), rejections(Shifted))
    assert law_error(Rule.SHARED_NOISE, Shifted) < 1e-12


def test_noise_of_the_drafts_own() -> None:
    """Draft and target draw apart: lossless, and the whole use of sharing is gone."""

    class Apart(SharedNoise):
        def noise_of(self, position: int, actor: str) -> int:
            return -1 - position if actor == "draft" else position

    must_differ(rejections(), rejections(Apart))
    assert law_error(Rule.SHARED_NOISE, Apart, TWO) < 1e-12


def test_noise_reused_across_positions() -> None:
    """One vector for two positions: each token has the right law, the pair of them has not."""

    class Reused(SharedNoise):
        def noise_of(self, position: int, actor: str) -> int:
            return position // 2

    must_differ(law_error(Rule.SHARED_NOISE), law_error(Rule.SHARED_NOISE, Reused))


def test_ratio_test_with_shared_noise() -> None:
    """Draft and correction use one Gumbel vector under the ratio rule: the bias that vLLM shipped and mended."""

    def error(joint_of: Callable[[Floats, Floats], Floats]) -> float:
        law = np.zeros(4)
        owed = laws.residual_law(TARGET, DRAFT)
        joint = joint_of(owed, DRAFT)  # of draft and correction
        for token in range(4):
            chance = laws.accept_probability(TARGET[token], DRAFT[token])
            law[token] += DRAFT[token] * chance
            law += (1 - chance) * joint[token]
        return float(np.abs(law - TARGET).sum() / 2)

    must_differ(error(lambda owed, draft: np.outer(draft, owed)), error(laws.shared_noise_joint))


def test_keeping_the_branch_that_the_target_likes_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch of largest p survives and is emitted if it passes u < p (the SpecBranch release's choice)."""
    candidates = (0, 3)

    def error() -> float:
        return float(np.abs(laws.emitted_law(Rule.POINT_MASS, TARGET, DRAFT, candidates) - TARGET).sum() / 2)

    def likes_best(rule: Rule, target: Floats, draft: Floats, tokens: Sequence[int]) -> laws.Trial:
        survivor = max(tokens, key=lambda token: target[token])
        chance = laws.accept_probability(target[survivor], draft[survivor])
        return laws.Trial((survivor,), (chance,), laws.residual_law(target, draft))

    sound = error()
    monkeypatch.setattr(laws, "trial", likes_best)
    must_differ(sound, error())

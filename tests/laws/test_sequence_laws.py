"""The emitted-sequence law of every policy under every rule, by going through all outcomes of the real step machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.machine import Close, Reply, decode
from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, Policy, Verdict
from sim.decoding.policies.catalog import POLICIES, parse_policy
from tests.laws.enumerated.law import TinyPair, autoregressive_law, random_pair, sequence_law, total_variation
from tests.laws.enumerated.world import EnumeratedWorld, Tokens
from tests.laws.verification_laws import Rule
from traces.schema import Sampling, Signal

# Each is enumerated to two tokens more than its longest draft: a token after a bonus and after a correction.
LABELS = [
    "autoregressive",
    "fixed_length:draft_length=2",
    "fixed_length:draft_length=3",
    "confidence_stop:threshold=0.7,max_length=3",
    "confidence_stop:threshold=1.0,max_length=3,signal=margin",
    "adaedl:max_length=3,threshold=0.7,step=0.3",
    "product_rule:max_length=3,guess_by=max_prob,slope=4,intercept=-2,threshold=0.4",
    "product_rule:max_length=2",
    "pearl:draft_length=1",
    "pearl:draft_length=3",
    "saguaro:draft_length=2,fan_out=1",
    "saguaro:draft_length=2,fan_out=2,spread=uniform",
    "specbranch:draft_length=2,max_branches=2,epsilon=0.7",
    "specbranch:draft_length=3,max_branches=2,epsilon=0.7,on_miss=overlap,prior_length=2",
    "specbranch:draft_length=2,max_branches=2,epsilon=1.0,signal=margin,is_fixed_count=true",
    "specbranch:draft_length=2,max_branches=1,uses_hrad=false,epsilon=0.7",
    "outcome_hedging:draft_length=2,max_branches=3,guess_by=max_prob,slope=4,intercept=-2",
    "outcome_hedging:draft_length=2,max_branches=3,serial_length=2",
    "outcome_hedging:draft_length=2,max_branches=3",
    "outcome_hedging:draft_length=2,max_branches=2,serial_length=2,uses_hrad=true",
    "outcome_hedging:draft_length=2,max_branches=3,hedges=uniform,serial_length=1,least_reach=0",
    "prompt_lookup:max_length=3",
    "probe:max_length=2,max_branches=2",
]
PAIR = random_pair(np.random.default_rng(3), 2, target_order=2)


def classes(tokens: tuple[int, ...]) -> tuple[float, float, float]:
    """A predictor: any function of the past; here all three classes occur."""
    laws = [(0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6)]
    return laws[(2 * sum(tokens) + len(tokens)) % 3]


def longest(policy: Policy) -> int:
    return int(getattr(policy, "draft_length", getattr(policy, "max_length", 0)))


def reads_the_noise(label: str) -> bool:
    policy = parse_policy(label)
    return "margin" in {str(getattr(policy, name, "")) for name in ("signal", "guess_by")}


def distance(policy: Policy, rule: Rule, pair: TinyPair, length: int, **more: object) -> float:
    found = sequence_law(policy, rule, pair, length, classes=classes, **more)  # type: ignore[arg-type]
    return total_variation(found.probs, autoregressive_law(pair, length, eos=more.get("eos")))  # type: ignore[arg-type]


def test_every_policy_of_the_catalog_is_enumerated() -> None:
    assert {label.partition(":")[0] for label in LABELS} == set(POLICIES)


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("label", LABELS)
def test_every_policy_emits_the_targets_sequence_law(label: str, rule: Rule) -> None:
    policy = parse_policy(label)
    length = max(4, longest(policy) + 2)
    if reads_the_noise(label) and rule in (Rule.RATIO, Rule.TOP_PLUS_SAMPLE):
        with pytest.raises(ValueError, match="reads the noise"):
            distance(policy, rule, PAIR, length)
        return
    assert distance(policy, rule, PAIR, length) < 1e-12


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
    "label", ["fixed_length:draft_length=1", "pearl:draft_length=2", "saguaro:draft_length=1,fan_out=2,spread=uniform"]
)
def test_more_tokens_and_more_branches(label: str, rule: Rule) -> None:
    pair = random_pair(np.random.default_rng(8), 3)
    policy = parse_policy(label)
    assert distance(policy, rule, pair, longest(policy) + 2) < 1e-12


@pytest.mark.parametrize("rule", Rule)
def test_four_tokens(rule: Rule) -> None:
    pair = random_pair(np.random.default_rng(8), 4, target_order=0, draft_order=0)
    assert distance(parse_policy("pearl:draft_length=1"), rule, pair, 3) < 1e-12


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
    "label", ["fixed_length:draft_length=2", "pearl:draft_length=2", "saguaro:draft_length=2,fan_out=1"]
)
def test_an_end_token_within_the_draft_cuts_alike(label: str, rule: Rule) -> None:
    assert distance(parse_policy(label), rule, PAIR, 4, eos=1) < 1e-12


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(0.5), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.7)], ids=str
)
def test_temperature_and_filters(sampling: Sampling, rule: Rule) -> None:
    pair = random_pair(np.random.default_rng(2), 3, target_order=0).sampled(sampling)
    for label in ("fixed_length:draft_length=2", "saguaro:draft_length=1,fan_out=1"):
        assert distance(parse_policy(label), rule, pair, 4) < 1e-12


@pytest.mark.parametrize("rule", [Rule.SHARED_NOISE, Rule.RATIO, Rule.TOP_PLUS_SAMPLE])
def test_a_draft_that_is_the_target_is_never_rejected(rule: Rule) -> None:
    same = TinyPair(PAIR.target_probs, PAIR.target_probs)
    found = sequence_law(parse_policy("fixed_length:draft_length=2"), rule, same, 5)
    assert found.num_rejected < 1e-12
    assert found.num_rounds == pytest.approx(2)
    assert total_variation(found.probs, autoregressive_law(same, 5)) < 1e-12


@dataclass(frozen=True)
class Whim(Defaults):
    """Answers without any sense, as hashes of all that it may see; the noise included under shared noise."""

    salt: int
    reads_noise: bool

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, num_alternatives=3, learns=True)

    @property
    def overlaps(self) -> bool:
        return self.salt % 3 > 0

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 1 if len(pending) < 2 and self._number(seen, pending, 3) else 0

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        """A prefix that ends where it ends whatever comes later, unless the noise may be read."""
        if self.reads_noise:
            return self._number(seen, drafted, len(drafted) + 1)
        return next((n for n in range(len(drafted)) if not self._number(seen, drafted[: n + 1], 3)), len(drafted))

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        signals = (*pending, frontier)
        return Hedges(
            tuple(self._number(seen, signals, 3, n) for n in range(len(signals))), self._number(seen, signals, 3)
        )

    def learn(self, memory: int | None, verdict: Verdict) -> int:
        return hash((memory or 0, verdict))

    def _number(self, seen: Observation, signals: Sequence[Signal], below: int, *more: int) -> int:
        about = [signal.margin if self.reads_noise else signal.max_prob for signal in signals]
        return hash((self.salt, seen[:-3], seen.memory or 0, tuple(about), *more)) % below


@settings(max_examples=12, deadline=None)
@given(salt=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_no_decision_changes_the_law_under_shared_noise(salt: int, seed: int) -> None:
    pair = random_pair(np.random.default_rng(seed), 2)
    assert distance(Whim(salt, True), Rule.SHARED_NOISE, pair, 4) < 1e-12


@pytest.mark.parametrize("rule", [Rule.RATIO, Rule.POINT_MASS, Rule.TOP_PLUS_SAMPLE])
@settings(max_examples=12, deadline=None)
@given(salt=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_no_decision_made_before_the_draw_changes_the_law_under_the_others(rule: Rule, salt: int, seed: int) -> None:
    pair = random_pair(np.random.default_rng(seed), 2)
    assert distance(Whim(salt, False), rule, pair, 4) < 1e-12


class SampledNoise:
    """Gumbel vectors drawn as a sampler draws them: no regions, no branches."""

    def __init__(self, pair: TinyPair, rng: np.random.Generator) -> None:
        self._pair, self._noise = pair, rng.gumbel(size=(16, pair.vocab_size))

    def begin_round(self, position: int) -> None:
        """Nothing."""

    def draft(self, prefix: Tokens) -> int:
        return int(self._scores(prefix).argmax())

    def signal(self, prefix: Tokens) -> Signal:
        second, best = np.sort(self._scores(prefix))[-2:]
        return Signal(max(self._pair.draft_law(prefix)), 0.0, float(best - second))

    def settle(self, prefix: Tokens, pending: int | None, num_hedges: int) -> tuple[int, bool]:
        token = int((np.log(self._pair.target_law(prefix)) + self._noise[len(prefix)]).argmax())
        hedged = [other for other in np.argsort(-self._scores(prefix)).tolist() if other != pending][:num_hedges]
        return token, token in hedged

    def _scores(self, prefix: Tokens) -> np.ndarray:
        scores: np.ndarray = np.log(self._pair.draft_law(prefix)) + self._noise[len(prefix)]
        return scores


@pytest.mark.parametrize(
    "label", ["confidence_stop:threshold=1.0,max_length=2,signal=margin", "saguaro:draft_length=2,fan_out=1"]
)
def test_enumerated_rounds_are_those_of_sampled_noise(label: str) -> None:
    pair, policy, length, num_runs = random_pair(np.random.default_rng(6), 3), parse_policy(label), 4, 3000
    rng = np.random.default_rng(0)
    counts = np.zeros((num_runs, 4))
    for run in range(num_runs):
        world = EnumeratedWorld(SampledNoise(pair, rng), policy.needs, length, None, None)  # type: ignore[arg-type]
        machine = decode(policy, request_id=0, max_new_tokens=length)
        reply: Reply = None
        while True:
            try:
                command = machine.send(reply)
            except StopIteration:
                break
            if isinstance(command, Close):
                done = command.round
                counts[run] += (1, done.num_pending, done.num_rejected, done.is_hit)
            reply = world.answer(command)
    found = sequence_law(policy, Rule.SHARED_NOISE, pair, length, margin_edges=(1.0,))
    errors = counts.mean(axis=0) - found[1:5]
    bounds = 4.5 * counts.std(axis=0) / np.sqrt(num_runs)
    assert (np.abs(errors) <= bounds + 1e-9).all(), f"{errors=} beyond {bounds=}"


@dataclass(frozen=True)
class Hindsight(Defaults):
    """Drafts two tokens and submits them only if the second looks easy, which depends on what the first was."""

    @property
    def needs(self) -> Needs:
        return Needs(signals=True)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 2 - len(pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return len(drafted) if drafted[-1].max_prob > 0.75 else 0


def test_hindsight_is_lossy_under_the_ratio_rule_and_harmless_under_shared_noise() -> None:
    pair = TinyPair(np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([[0.4, 0.6], [0.1, 0.9]]))
    assert distance(Hindsight(), Rule.RATIO, pair, 4) > 1e-2
    assert distance(Hindsight(), Rule.SHARED_NOISE, pair, 4) < 1e-12
    assert distance(Hindsight(), Rule.POINT_MASS, pair, 4) < 1e-12


def test_a_policy_of_ones_own_that_reads_the_noise_is_refused_by_the_ratio_rule() -> None:
    for rule in (Rule.RATIO, Rule.TOP_PLUS_SAMPLE):
        with pytest.raises(ValueError, match="reads the noisy margin"):
            distance(Whim(1, True), rule, PAIR, 3)


def test_a_tree_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 10 paths"):
        sequence_law(parse_policy("fixed_length:draft_length=2"), Rule.RATIO, PAIR, 4, max_paths=10)
    with pytest.raises(ValueError, match="sum 1"):
        TinyPair(np.ones((2, 2)), np.eye(2))
    with pytest.raises(ValueError, match="axis"):
        TinyPair(np.eye(2), np.eye(3))

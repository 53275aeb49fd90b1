"""Every rule emits the target's law, exactly; and the closed forms of shared noise hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from sim.decoding.policies.catalog import parse_policy
from sim.decoding.verification import Floats
from tests.laws.noise_regions import by_margin, by_order, everything
from tests.laws.verification_laws import (
    Rule,
    check_pairing,
    emitted_law,
    hit_probability,
    proposal_law,
    residual_law,
    shared_noise_joint,
    trial,
    verify,
)

PRIVATE_RULES = (Rule.RATIO, Rule.POINT_MASS, Rule.TOP_PLUS_SAMPLE)


@st.composite
def pairs(draw: st.DrawFn, max_vocab: int = 6) -> tuple[Floats, Floats]:
    """Target's and draft's law: random, with zeros and ties, one-hot, equal, disjoint."""
    vocab = draw(st.integers(2, max_vocab))
    weights = st.sampled_from([0.0, 1.0, 1.0, 2.0]) | st.floats(1e-6, 1)
    rows = st.lists(weights, min_size=vocab, max_size=vocab).filter(any)
    target = np.array(draw(rows))
    draft = target if draw(st.sampled_from([False, False, False, True])) else np.array(draw(rows))
    return target / target.sum(), draft / draft.sum()


def distance(first: Floats, second: Floats) -> float:
    return float(np.abs(first - second).sum() / 2)


@pytest.mark.parametrize("rule", PRIVATE_RULES)
@settings(max_examples=150, deadline=None)
@given(pair=pairs(), num_candidates=st.integers(1, 4))
def test_rules_with_private_noise_emit_the_targets_law(
    rule: Rule, pair: tuple[Floats, Floats], num_candidates: int
) -> None:
    target, draft = pair
    proposals = proposal_law(rule, draft, num_candidates)
    assert abs(sum(proposal.probability for proposal in proposals) - 1) < 1e-12
    emitted = np.zeros(len(target))
    for tokens, probability in proposals:
        assert len(set(tokens)) == len(tokens) == min(num_candidates, len(target))
        law = emitted_law(rule, target, draft, tokens)
        assert not np.isnan(law).any()
        assert (law[target == 0] == 0).all()
        assert abs(law.sum() - 1) < 1e-12
        emitted += probability * law
    assert distance(emitted, target) < 1e-12


@settings(max_examples=60, deadline=None)
@given(pair=pairs(max_vocab=3), num_candidates=st.integers(1, 3))
def test_shared_noise_emits_the_targets_law(pair: tuple[Floats, Floats], num_candidates: int) -> None:
    target, draft = pair
    emitted = np.zeros(len(target))
    total = 0.0
    for tokens, probability in proposal_law(Rule.SHARED_NOISE, draft, num_candidates):
        orders = by_order(everything(len(draft)), draft.tolist(), len(tokens))
        region = next(part for _, order, part in orders if order == tokens)
        assert abs(region.mass - probability) < 1e-12  # the noisy order draws without replacement
        emitted += probability * emitted_law(Rule.SHARED_NOISE, target, draft, tokens)
        total += probability
    assert abs(total - 1) < 1e-12
    assert distance(emitted, target) < 1e-12


def test_shared_noise_emits_the_targets_law_of_four_tokens() -> None:
    rng = np.random.default_rng(1)
    target, draft = rng.dirichlet(np.ones(4), 2)
    for num_candidates in (2, 3):
        proposals = proposal_law(Rule.SHARED_NOISE, draft, num_candidates)
        emitted = sum(chance * emitted_law(Rule.SHARED_NOISE, target, draft, tokens) for tokens, chance in proposals)
        assert distance(np.asarray(emitted), target) < 1e-12


@settings(max_examples=200, deadline=None)
@given(pair=pairs())
def test_the_joint_law_of_draft_and_target_has_the_right_marginals(pair: tuple[Floats, Floats]) -> None:
    target, draft = pair
    joint = shared_noise_joint(target, draft)
    assert (joint >= 0).all()
    assert distance(joint.sum(axis=0), target) < 1e-12
    assert distance(joint.sum(axis=1), draft) < 1e-12
    overlap = float(np.minimum(target, draft).sum())
    acceptance = float(np.trace(joint))
    assert overlap / (2 - overlap) - 1e-12 <= acceptance <= overlap + 1e-12  # (1 - TV) / (1 + TV), Daliri et al.
    for token in np.flatnonzero((target > 0) & (draft > 0)):
        bound = np.maximum(target / target[token], draft / draft[token]).sum()
        assert abs(joint[token, token] - 1 / bound) < 1e-12


@settings(max_examples=60, deadline=None)
@given(pair=pairs(max_vocab=4))
def test_the_joint_law_is_the_volume_of_its_noise(pair: tuple[Floats, Floats]) -> None:
    target, draft = pair
    found = np.zeros((len(target), len(target)))
    for chance, (drafted,), part in by_order(everything(len(target)), draft.tolist(), 1):
        for given_drafted, (emitted,), _ in by_order(part, target.tolist(), 1):
            found[drafted, emitted] += chance * given_drafted
    np.testing.assert_allclose(found, shared_noise_joint(target, draft), atol=1e-12)


def test_the_joint_law_agrees_with_quadrature_and_with_draws() -> None:
    rng = np.random.default_rng(3)
    target, draft = rng.dirichlet(np.ones(7), 2)
    joint = shared_noise_joint(target, draft)
    drafted = int(np.argmax(draft / target))
    emitted = int(np.argmin(draft / target))

    def density(ratio: float) -> float:
        return float(draft[drafted] * target[emitted] / np.maximum(draft, ratio * target).sum() ** 2)

    ratios = np.sort(draft / target)
    pieces = [integrate.quad(density, low, high, epsabs=1e-14)[0] for low, high in itertools.pairwise(ratios)]
    assert abs(sum(pieces) - joint[drafted, emitted]) < 1e-10
    noise = rng.gumbel(size=(200_000, 7))
    pairs_seen = (np.log(draft) + noise).argmax(axis=1) * 7 + (np.log(target) + noise).argmax(axis=1)
    shares = np.bincount(pairs_seen, minlength=49) / len(noise)
    errors = np.abs(shares - joint.ravel()) / np.sqrt(np.maximum(joint.ravel(), 1e-9) / len(noise))
    assert errors.max() < 5, f"{errors.max():.1f} standard errors off"


def test_margins_of_the_noise_have_their_closed_form() -> None:
    # Two tokens: log(q_0 / q_1) + g_0 - g_1 is logistic around log(q_0 / q_1).
    draft, edge = [0.3, 0.7], 0.8
    (below, _, _), (above, _, _) = by_margin(everything(2), draft, (edge,))
    centre = np.log(draft[0] / draft[1])
    expected = 1 / (1 + np.exp(-(edge - centre))) - 1 / (1 + np.exp(-(-edge - centre)))
    assert below == pytest.approx(expected, abs=1e-14)
    assert above == pytest.approx(1 - expected, abs=1e-14)


def test_hit_rates_have_their_closed_forms() -> None:
    rng = np.random.default_rng(5)
    target, draft = rng.dirichlet(np.ones(4), 2)
    overlap = np.minimum(target, draft).sum()
    assert hit_probability(Rule.RATIO, target, draft, 1) == pytest.approx(overlap)
    assert hit_probability(Rule.TOP_PLUS_SAMPLE, target, draft, 1) == pytest.approx(overlap)
    assert hit_probability(Rule.SHARED_NOISE, target, draft, 1) == pytest.approx(
        np.trace(shared_noise_joint(target, draft))
    )
    best = np.argsort(-draft)
    assert hit_probability(Rule.POINT_MASS, target, draft, 2) == pytest.approx(target[best[:2]].sum())
    rest = np.where(np.arange(4) == best[0], 0, draft) / (1 - draft[best[0]])
    expected = target[best[0]] + np.minimum(np.where(np.arange(4) == best[0], 0, target), rest).sum()
    assert hit_probability(Rule.TOP_PLUS_SAMPLE, target, draft, 2) == pytest.approx(expected)
    for rule in Rule:
        assert hit_probability(rule, target, draft, 4) == pytest.approx(1)
        if rule is not Rule.POINT_MASS:
            assert hit_probability(rule, draft, draft, 1) == pytest.approx(1)


@settings(max_examples=150, deadline=None)
@given(
    pair=pairs(),
    rule=st.sampled_from(PRIVATE_RULES),
    num_candidates=st.integers(1, 3),
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)
def test_settling_with_given_numbers_stays_within_the_law(
    pair: tuple[Floats, Floats], rule: Rule, num_candidates: int, numbers: list[float]
) -> None:
    target, draft = pair
    for tokens, _ in proposal_law(rule, draft, num_candidates):
        token, hit = verify(rule, target, draft, tokens, numbers[:3], numbers[3])
        assert emitted_law(rule, target, draft, tokens)[token] > 0
        assert hit == (tokens.index(token) if token in tokens else -1)
        tested, chances, _ = trial(rule, target, draft, tokens)
        if tested and numbers[len(tokens) - len(tested)] < chances[0]:
            assert token == tested[0]


def test_the_residual_of_equal_laws_is_no_division_by_zero() -> None:
    law = np.array([0.25, 0.75])
    assert residual_law(law, law).tolist() == law.tolist()
    assert verify(Rule.RATIO, law, law, (0,), (0.999999,), 0.5).token == 0


def test_ratio_rules_refuse_policies_that_read_the_drafts_noise() -> None:
    for label in ("confidence_stop:signal=margin", "specbranch:signal=margin", "outcome_hedging", "product_rule"):
        policy = parse_policy(label)
        for rule in (Rule.RATIO, Rule.TOP_PLUS_SAMPLE):
            with pytest.raises(ValueError, match="reads the noise"):
                check_pairing(rule, policy)
        check_pairing(Rule.SHARED_NOISE, policy)
        check_pairing(Rule.POINT_MASS, policy)
    check_pairing(Rule.RATIO, parse_policy("confidence_stop"))

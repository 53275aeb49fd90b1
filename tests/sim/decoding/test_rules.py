"""Recorded sequences under engines' rules: chances of replayed rounds are those of the rule, on laws that are enumerated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import replay
from sim.decoding.rules import acceptance, check_rule, parse_rule, under_rule, under_rules
from tests.laws.verification_laws import Rule as Law
from tests.laws.verification_laws import emitted_law, proposal_law
from traces.schema import RequestTrace, Rule, TokenChances

MakeTrace = Callable[..., RequestTrace]
TARGET, DRAFT = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.2, 0.5, 0.1, 0.2])


def with_chances(trace: RequestTrace, chances: list[TokenChances]) -> RequestTrace:
    return replace(trace, chances=tuple(chances), temperature=1.0)


def chances_of(token: int) -> TokenChances:
    order = np.argsort(-DRAFT, kind="stable").tolist()
    return TokenChances(TARGET[token], DRAFT[token], TARGET[order[0]], order.index(token))


@pytest.mark.parametrize("law", [Law.RATIO, Law.POINT_MASS])
def test_the_chance_given_the_emitted_token_is_that_of_the_enumerated_rule(law: Law) -> None:
    """Bayes over all proposals: P(the draft had it | y emitted), for every y."""
    emitted, kept = np.zeros(4), np.zeros(4)
    for proposal in proposal_law(law, DRAFT, 1):
        outcomes = proposal.probability * emitted_law(law, TARGET, DRAFT, proposal.tokens)
        emitted += outcomes
        kept[proposal.tokens[0]] += outcomes[proposal.tokens[0]]
    np.testing.assert_allclose(emitted, TARGET, atol=1e-12)
    for token in range(3):
        known = chances_of(token)
        chance = acceptance(known.target, known.draft) if law is Law.RATIO else float(known.plain_rank == 0)
        assert kept[token] / emitted[token] == pytest.approx(chance, abs=1e-12)
    if law is Law.POINT_MASS:
        assert kept.sum() == pytest.approx(chances_of(0).target_of_best)


def test_replayed_acceptance_is_one_minus_total_variation(make_trace: MakeTrace) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.choice(4, size=6000, p=TARGET)
    trace = with_chances(make_trace(num_tokens=6000), [chances_of(token) for token in tokens])
    ratio, greedy = (under_rule(trace, rule, rng) for rule in (Rule.RATIO, Rule.POINT_MASS))
    for found, expected in ((ratio, np.minimum(TARGET, DRAFT).sum()), (greedy, TARGET[1])):
        share = np.mean(np.array(found.ranks) == 0)
        assert abs(share - expected) < 4 * np.sqrt(0.25 / 6000)
    assert set(greedy.ranks) == {0, 1, 3}  # the third token of the draft's order is never emitted
    assert ratio.known_ranks == 1


def test_serial_policies_and_pearl_are_replayed_and_others_refused(make_trace: MakeTrace) -> None:
    trace = with_chances(make_trace(num_tokens=50), [chances_of(index % 3) for index in range(50)])
    drawn = under_rule(trace, Rule.RATIO, np.random.default_rng(1))
    for label in ("fixed_length:draft_length=3", "pearl:draft_length=4"):
        assert sum(each.num_emitted for each in replay(parse_policy(label), drawn)) == 50
    for label in ("confidence_stop", "saguaro:draft_length=2,fan_out=2"):
        with pytest.raises(ValueError, match=r"no draft confidences|best tokens apart"):
            replay(parse_policy(label), drawn)
    greedy = under_rule(trace, Rule.POINT_MASS, np.random.default_rng(1))
    assert replay(parse_policy("saguaro:draft_length=2,fan_out=2"), greedy)


def test_temperature_0_and_shared_noise_change_nothing(make_trace: MakeTrace) -> None:
    trace, rng = make_trace(), np.random.default_rng(0)
    assert under_rule(trace, Rule.RATIO, rng) is trace
    assert under_rule(replace(trace, temperature=1.0), Rule.SHARED, rng).ranks == trace.ranks
    assert len(under_rules([trace, trace], Rule.RATIO, copies=3)) == 6


def test_what_cannot_be_said_is_refused(make_trace: MakeTrace) -> None:
    with pytest.raises(ValueError, match="record it again"):
        under_rule(replace(make_trace(), temperature=1.0), Rule.RATIO, np.random.default_rng(0))
    with pytest.raises(ValueError, match="reads the noise"):
        check_rule(parse_policy("product_rule"), Rule.RATIO)
    check_rule(parse_policy("product_rule"), Rule.POINT_MASS)
    check_rule(parse_policy("product_rule:guess_by=max_prob"), Rule.RATIO)
    with pytest.raises(ValueError, match="known are shared, ratio, point_mass"):
        parse_rule("typical")

"""The serial loop under engines' rules: decisions are the specification's, laws on real weights the target's, replay exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from executor.models.loading import load_engine
from executor.models.names import resolve_model
from executor.models.settings import EngineSettings
from executor.noise import Purpose, gumbel
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import Request
from executor.roles.ratio import settle_by_ratio
from executor.verification import noisy_scores
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import replay
from sim.decoding.rules import acceptance, under_rule
from tests.laws.verification_laws import Rule as Law
from tests.laws.verification_laws import verify
from tests.settings import pair_settings
from traces.schema import Rule, Sampling

FIXED = parse_policy("fixed_length:draft_length=3")


def session_of(rule: Rule) -> Iterator[Session]:
    with Session(replace(pair_settings(capacity=256), rule=rule)) as session:
        yield session


@pytest.fixture(scope="module")
def ratio() -> Iterator[Session]:
    yield from session_of(Rule.RATIO)


@pytest.fixture(scope="module")
def point_mass() -> Iterator[Session]:
    yield from session_of(Rule.POINT_MASS)


def request_of(session: Session, seed: int, sampling: Sampling, *, num_prompt: int = 24, num_new: int = 40) -> Request:
    text = load_prompts("held_out", 1, skip=seed % 7)[0].text
    return Request(
        prompt_id="p",
        tokens=session.encode(text)[:num_prompt],
        max_new_tokens=num_new,
        sampling=sampling,
        seed=seed,
        noise_key=seed,
        ignore_eos=True,
    )


def test_every_decision_is_that_of_the_specification() -> None:
    rng, kinds = np.random.default_rng(0), Counter[int]()
    for _ in range(400):
        num, vocab = int(rng.integers(0, 4)), 5
        target, draft = (rng.dirichlet(np.full(vocab, 0.4), size=num + 1) for _ in range(2))
        pending = [int(rng.choice(vocab, p=row)) for row in draft[:num]]
        tests, owns = rng.random((2, num + 1))
        found = settle_by_ratio(*map(torch.tensor, (target, draft[:num])), pending, *map(torch.tensor, (tests, owns)))
        for index in range(num + 1):
            candidates = [pending[index]] if index < num else []
            outcome = verify(Law.RATIO, target[index], draft[index], candidates, [tests[index]], owns[index])
            if outcome.hit < 0:
                break
        assert found == (index, outcome.token)
        kinds[num - index] += 1
    assert min(kinds.values()) > 10  # all lengths of rollback occur


def test_a_token_that_the_target_never_emits_is_rejected() -> None:
    target, draft = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert settle_by_ratio(target, draft, [0], torch.zeros(2), torch.zeros(2)) == (0, 1)


def test_a_position_that_is_drafted_again_has_fresh_noise() -> None:
    first, second = (gumbel(1, 2, [5], 64, Purpose.DRAFT, attempt=attempt) for attempt in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, gumbel(1, 2, [5], 64, Purpose.DRAFT))


def test_at_temperature_0_the_tokens_are_those_of_shared_noise(ratio: Session, session: Session) -> None:
    request = request_of(ratio, 1, Sampling(0.0))
    assert ratio.run(request, FIXED).tokens == session.run(request, FIXED).tokens


@pytest.mark.long
@pytest.mark.parametrize("rule", [Rule.RATIO, Rule.POINT_MASS])
def test_on_real_weights_sequences_have_the_targets_law(rule: Rule, ratio: Session, point_mass: Session) -> None:
    """Chi-square over all sequences of three tokens, of a law cut to the three best tokens so that every cell is filled. One
    round may hold a rejection, or the bonus token, or be followed by another round."""
    session, num_runs = (ratio if rule is Rule.RATIO else point_mass), 300
    sampling, policy = Sampling(1.0, top_k=3), parse_policy("fixed_length:draft_length=2")
    prompt = request_of(session, 0, sampling, num_prompt=10).tokens
    counts, rejected = Counter[tuple[int, ...]](), 0
    for seed in range(num_runs):
        request = Request(
            prompt_id="p", tokens=prompt, max_new_tokens=3, sampling=sampling, seed=seed, noise_key=7, ignore_eos=True
        )
        done = session.run(request, policy)
        counts[tuple(done.tokens)] += 1
        rejected += sum(round_.num_rejected > 0 for round_, _ in done.rounds)
    assert rejected > num_runs / 20
    law = sequence_law(prompt, sampling)
    assert set(counts) <= set(law)
    cells = [(counts[tokens], num_runs * chance) for tokens, chance in law.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    rest = [sum(column) for column in zip((0, 0.0), *(cell for cell in cells if cell[1] < 5), strict=True)]
    seen, expected = np.array([*large, rest]).T if rest[1] > 1 else np.array(large).T
    p_value = chisquare(seen, expected * seen.sum() / expected.sum()).pvalue
    assert p_value > 1e-3, f"p = {p_value:.2g} over {len(seen)} cells"


def sequence_law(prompt: tuple[int, ...], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Exact chances of all sequences of three tokens under the target."""
    engine = load_engine(resolve_model("embedded", "target"), EngineSettings(capacity=64))

    def law(tokens: tuple[int, ...]) -> dict[int, float]:
        engine.reset()
        with torch.inference_mode():
            scores = noisy_scores(engine.extend(list(prompt + tokens), last_only=True), sampling, None)
        probs = torch.softmax(scores[0].double(), -1)
        return {token: float(probs[token]) for token in torch.nonzero(probs).flatten().tolist()}

    found = {(): 1.0}
    for _ in range(3):
        found = {
            (*tokens, token): chance * own for tokens, chance in found.items() for token, own in law(tokens).items()
        }
    assert len(found) == len(list(product(range(3), repeat=3)))
    return found


def test_replay_of_the_point_mass_rule_gives_the_very_rounds(point_mass: Session) -> None:
    for seed in (1, 2):
        done = point_mass.run(request_of(point_mass, seed, Sampling(1.0)), FIXED, request_id=0)
        trace = point_mass.annotate(done, request_id=0, tail_depth=0).trace
        rounds = replay(FIXED, under_rule(trace, Rule.POINT_MASS, np.random.default_rng(0)))
        executed = [round_ for round_, _ in done.rounds]
        assert [(each.num_pending, each.num_accepted) for each in rounds] == [
            (each.num_pending, each.num_accepted) for each in executed
        ]
        assert any(each.num_rejected for each in executed)


def test_what_the_loop_cannot_run_is_refused(ratio: Session) -> None:
    request = request_of(ratio, 1, Sampling(1.0), num_new=4)
    with pytest.raises(ValueError, match="drafts while the target verifies"):
        ratio.run(request, parse_policy("pearl:draft_length=3"))
    with pytest.raises(ValueError, match="reads the noise"):
        ratio.run(request, parse_policy("confidence_stop:signal=margin"))
    assert ratio.run(request, parse_policy("confidence_stop:signal=max_prob")).tokens


@pytest.mark.slow
def test_executed_acceptances_have_the_recorded_chances(ratio: Session) -> None:
    """60 prompts under the ratio rule, each with ten seeds. Along the executed sequences each test succeeds with the
    recorded chance, hence the sum of the differences has a known variance: what it leaves open is well below 1%."""
    rng = np.random.default_rng(0)
    executed, predicted, difference, variance = np.zeros(2), np.zeros(2), 0.0, 0.0
    prompts = load_prompts("held_out", 60)
    for number, (seed, prompt) in enumerate(product(range(10), prompts)):
        request = replace(
            request_of(ratio, number, Sampling(1.0), num_new=64), tokens=ratio.encode(prompt.text)[:40], seed=seed
        )
        done = ratio.run(request, FIXED, request_id=0)
        trace = ratio.annotate(done, request_id=0, tail_depth=0).trace
        for round_, _ in done.rounds:
            num_tested = round_.num_accepted + (round_.num_rejected > 0)
            for index in range(num_tested):
                chances = trace.chances[round_.position + index]
                chance = acceptance(chances.target, chances.draft)
                difference += (index < round_.num_accepted) - chance
                variance += chance * (1 - chance)
        executed += (len(done.tokens), len(done.rounds))
        for _ in range(10):
            predicted += (trace.num_tokens, len(replay(FIXED, under_rule(trace, Rule.RATIO, rng))))
    assert abs(difference) < 4 * np.sqrt(variance), f"{difference / np.sqrt(variance):.1f} standard errors off"
    error = (predicted[0] / predicted[1]) / (executed[0] / executed[1]) - 1
    open_ = np.sqrt(variance) / executed[1]  # a round more for each token that is not accepted
    told = (
        f"{executed[0]:.0f} tokens in {executed[1]:.0f} rounds: {executed[0] / executed[1]:.4f} a round, predicted "
        f"{predicted[0] / predicted[1]:.4f}, {error:+.2%} off with a standard error of {open_:.2%}"
    )
    print(told)
    assert open_ < 0.005, told
    assert abs(error) <= 0.01, told

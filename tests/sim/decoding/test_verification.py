"""The specification of verification against hand-worked cases and the laws that it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sim.decoding.verification import choose, noisy_margin, noisy_scores, rank_of, settle, top_tokens, transform
from traces.schema import Sampling

PROBS = np.array([0.1, 0.4, 0.2, 0.3])


def law(probs: object, **sampling: float) -> list[float]:
    logits = np.log(np.asarray(probs, dtype=float)) + 17.0  # a constant must not matter
    return [round(float(p), 6) for p in np.exp(transform(logits, Sampling(**sampling)))]  # type: ignore[arg-type]


def test_temperature_reshapes_the_law() -> None:
    assert law(PROBS, temperature=1.0) == [0.1, 0.4, 0.2, 0.3]
    squared = PROBS**2 / np.sum(PROBS**2)
    assert law(PROBS, temperature=0.5) == pytest.approx(squared.tolist(), abs=1e-6)
    assert law(PROBS, temperature=0.0) == [0, 1, 0, 0]


def test_filters_keep_what_they_say() -> None:
    assert law(PROBS, temperature=1.0, top_k=1) == [0, 1, 0, 0]
    assert law(PROBS, temperature=1.0, top_k=2) == [0, 0.571429, 0, 0.428571]
    assert law(PROBS, temperature=1.0, top_k=9) == [0.1, 0.4, 0.2, 0.3]
    assert law(PROBS, temperature=1.0, top_p=1e-9) == [0, 1, 0, 0]
    assert law(PROBS, temperature=1.0, top_p=0.39) == [0, 1, 0, 0]
    assert law(PROBS, temperature=1.0, top_p=0.41) == [0, 0.571429, 0, 0.428571]
    assert law(PROBS, temperature=1.0, top_p=0.95) == [0.1, 0.4, 0.2, 0.3]
    # Top-p counts within top-k: of 0.4 and 0.3, the first alone has 0.57.
    assert law(PROBS, temperature=1.0, top_k=2, top_p=0.5) == [0, 1, 0, 0]
    # Top-p counts after temperature: at 0.5 the first has 0.53.
    assert law(PROBS, temperature=0.5, top_p=0.5) == [0, 1, 0, 0]


def test_equals_are_kept_from_the_lowest_id() -> None:
    even = [0.25] * 4
    assert law(even, temperature=0.0) == [1, 0, 0, 0]
    assert law(even, temperature=1.0, top_k=3) == [0.333333, 0.333333, 0.333333, 0]
    assert law(even, temperature=1.0, top_p=0.5) == [0.5, 0.5, 0, 0]
    assert top_tokens(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert choose(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@given(
    hnp.arrays(np.float64, (3, 7), elements=st.floats(-9, 9)),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.integers(0, 8),
    st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
)
def test_every_transformed_law_is_a_law_and_keeps_the_best_token(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float
) -> None:
    probs = np.exp(transform(logits, Sampling(temperature, top_k, top_p)))
    assert not np.isnan(probs).any()
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-12)
    assert (np.take_along_axis(probs, choose(logits)[:, None], axis=-1) > 0).all()
    if top_k:
        assert (np.count_nonzero(probs, axis=-1) <= top_k).all()


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.6), Sampling(1.0, top_k=3), Sampling(1.3, top_k=5, top_p=0.8)]
)
def test_the_noisy_choice_follows_the_transformed_law(sampling: Sampling) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=6)
    num_draws = 40_000
    scores = noisy_scores(np.broadcast_to(logits, (num_draws, 6)), sampling, rng.gumbel(size=(num_draws, 6)))
    counts = np.bincount(choose(scores), minlength=6)
    expected = num_draws * np.exp(transform(logits, sampling))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    p_value = stats.chisquare(counts[kept], expected[kept]).pvalue
    assert p_value > 1e-4, f"{p_value=:.1e}: {counts[kept]} against {expected[kept].round()}"


def test_temperature_0_ignores_noise() -> None:
    logits = np.array([[0.0, 2.0, 1.0]])
    assert np.array_equal(noisy_scores(logits, Sampling(), np.array([[99.0, 0.0, 0.0]])), logits)


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_settlement_is_the_longest_common_prefix_and_one_more(pending: list[int], target: list[int]) -> None:
    target = target[: len(pending) + 1]
    num_accepted, next_token = settle(target, pending)
    assert pending[:num_accepted] == target[:num_accepted]
    assert num_accepted == len(pending) or pending[num_accepted] != target[num_accepted]
    assert next_token == target[num_accepted]


def test_settlement_needs_one_target_token_more() -> None:
    assert settle([4], []) == (0, 4)
    with pytest.raises(ValueError, match="got 2 and 2"):
        settle([1, 2], [1, 2])


def test_output_depends_on_the_target_alone() -> None:
    """Whatever is drafted, the tokens that settle are those of decoding one by one."""
    rng = np.random.default_rng(0)
    noise = rng.gumbel(size=(30, 5))
    table = rng.normal(size=(5, 5))  # target logits after each token

    def target_token(previous: int, position: int) -> int:
        return int(choose(noisy_scores(table[previous], Sampling(1.0), noise[position])))

    alone = [0]
    while len(alone) <= 30:
        alone.append(target_token(alone[-1], len(alone) - 1))
    for draft_length in range(4):
        tokens = [0]
        while len(tokens) <= 24:
            pending = rng.integers(5, size=draft_length).tolist()
            inputs = [tokens[-1], *pending]
            target = [target_token(token, len(tokens) - 1 + i) for i, token in enumerate(inputs)]
            num_accepted, next_token = settle(target, pending)
            tokens += [*pending[:num_accepted], next_token]
        assert tokens == alone[: len(tokens)]


@given(hnp.arrays(np.float64, 8, elements=st.integers(-3, 3).map(float)))
def test_rank_is_the_place_in_the_order(scores: np.ndarray) -> None:
    assert [rank_of(int(token), scores) for token in top_tokens(scores, 8)] == list(range(8))


def test_margin_is_best_minus_second_best() -> None:
    assert noisy_margin(np.array([[1.0, 4.5, 2.0], [3.0, 3.0, 0.0]])).tolist() == [2.5, 0.0]
    assert noisy_margin(np.array([0.0, -np.inf])) == np.inf

"""Torch kernels against the NumPy specification: same tokens, ranks and signals."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from executor.noise import gumbel
from executor.verification import _order_keys, choose, noisy_scores, ranks_of, signals, top_tokens
from sim.decoding import verification as specification
from traces.schema import Sampling

SAMPLINGS = [
    Sampling(),
    Sampling(1.0),
    Sampling(0.7),
    Sampling(1.0, top_k=1),
    Sampling(0.8, top_k=5),
    Sampling(1.0, top_p=1e-6),
    Sampling(1.0, top_p=0.9),
    Sampling(1.5, top_p=0.999),
    Sampling(0.6, top_k=20, top_p=0.8),
    Sampling(1.0, top_k=500),
]


def some_logits(num_rows: int = 40, vocab: int = 300, *, tied: bool = False) -> Tensor:
    logits = 3 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(1))
    return logits.round() if tied else logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_kernels_equal_the_specification(sampling: Sampling, tied: bool) -> None:
    logits = some_logits(tied=tied)
    noise = gumbel(0, 0, range(len(logits)), logits.shape[1])
    scores = noisy_scores(logits, sampling, noise)
    exact = specification.noisy_scores(logits.double().numpy(), sampling, noise.double().numpy())
    assert scores.dtype == torch.float32
    assert np.array_equal(np.isfinite(scores.numpy()), np.isfinite(exact))
    tokens = choose(scores)
    assert np.array_equal(tokens.numpy(), specification.choose(exact))
    num_kept = int(np.isfinite(exact).sum(axis=-1).min())
    top = top_tokens(scores, min(4, num_kept))
    assert np.array_equal(top.numpy(), specification.top_tokens(exact, min(4, num_kept)))
    asked = torch.randint(300, (len(logits),), generator=torch.Generator().manual_seed(2))
    for some in (tokens, top[:, -1], asked):
        expected_ranks = [specification.rank_of(int(t), row) for t, row in zip(some, scores.numpy(), strict=True)]
        assert ranks_of(some, scores).tolist() == expected_ranks
    law = specification.transform(logits.double().numpy(), sampling if sampling.temperature else Sampling(1.0))
    got = signals(logits, scores, sampling)
    np.testing.assert_allclose(got[:, 0], np.exp(law).max(axis=-1), atol=1e-5)
    entropy = -np.sum(np.exp(law) * np.where(np.isfinite(law), law, 0), axis=-1)
    np.testing.assert_allclose(got[:, 1], entropy, atol=1e-5)
    assert (got[:, 1] >= 0).all()
    np.testing.assert_allclose(got[:, 2], specification.noisy_margin(exact), atol=1e-5)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_scores_without_noise_are_the_law(sampling: Sampling) -> None:
    logits = some_logits(tied=True)
    if sampling.temperature:
        probs = noisy_scores(logits, sampling, None).softmax(-1)
        expected = np.exp(specification.transform(logits.double().numpy(), sampling))
        np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_one_noise_row_serves_all_branches_of_a_position() -> None:
    logits, noise = some_logits(5), gumbel(0, 0, [3], 300)
    for sampling in (Sampling(1.0), Sampling(0.7, top_k=9)):
        assert torch.equal(
            noisy_scores(logits, sampling, noise), noisy_scores(logits, sampling, noise.expand(5, -1).contiguous())
        )


def test_equals_are_ordered_by_lowest_id_everywhere() -> None:
    scores = torch.tensor([[0.0, 2.0, -0.0, 2.0, 1.0, 0.0], [1.0] * 6, [float("-inf")] * 5 + [-3.5]])
    assert choose(scores).tolist() == [1, 0, 5]
    expected = [[1, 3, 4, 0, 2, 5], [0, 1, 2, 3, 4, 5], [5, 0, 1, 2, 3, 4]]
    for count in range(1, 7):
        assert top_tokens(scores, count).tolist() == [row[:count] for row in expected]
    for row, order in zip(scores, expected, strict=True):
        assert ranks_of(torch.tensor(order), row.expand(6, -1)).tolist() == list(range(6))


def test_order_keys_sort_as_the_scores_do() -> None:
    scores = torch.cat([some_logits(4, 200, tied=True), torch.full((4, 3), float("-inf"))], dim=1)
    by_key = _order_keys(scores).sort(dim=-1, descending=True).indices
    assert torch.equal(by_key, scores.sort(dim=-1, descending=True, stable=True).indices)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.5), Sampling(1.0, top_k=4, top_p=0.9)], ids=str)
def test_the_noisy_choice_follows_the_law(sampling: Sampling) -> None:
    num_draws, logits = 40_000, torch.tensor([[0.3, -1.0, 1.2, 0.0, -0.4, 0.8, 0.79]])
    noise = gumbel(4, 0, range(num_draws), 7)
    counts = choose(noisy_scores(logits.expand(num_draws, -1), sampling, noise)).bincount(minlength=7).numpy()
    expected = num_draws * np.exp(specification.transform(logits[0].double().numpy(), sampling))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    p_value = stats.chisquare(counts[kept], expected[kept]).pvalue
    assert p_value > 1e-4, f"{p_value=:.1e}: {counts} against {expected.round()}"

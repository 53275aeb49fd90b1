"""Noise is a pure function of its key, and its law is Gumbel's."""

import numpy as np
import pytest
import torch
from scipy import stats

from executor.noise import NoiseTable, Purpose, gumbel, philox, uniform

# Counter, key and output words: the known answers published with Philox4x32-10 (Random123, Salmon et al. 2011).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    first, second, third, fourth = (torch.tensor([word, word]) for word in counter)
    words = philox((first, second, third, fourth), key)
    assert tuple(int(word[1]) for word in words) == expected


def test_the_law_is_gumbel() -> None:
    sample = gumbel(3, 1, range(200), 1000).flatten().numpy()
    result = stats.kstest(sample, stats.gumbel_r.cdf)
    assert result.pvalue > 1e-3, f"Kolmogorov-Smirnov distance {result.statistic:.5f}, p = {result.pvalue:.1e}"


def test_uniforms_lie_strictly_between_0_and_1() -> None:
    sample = uniform(0, 0, range(100), 1003, Purpose.ACCEPT)
    assert sample.shape == (100, 1003)
    assert sample.dtype == torch.float64
    assert 0 < sample.min() < 1e-4
    assert 1 - 1e-4 < sample.max() < 1


@pytest.mark.parametrize(("word", "extreme"), [(0, -3.13), (0xFFFFFFFF, 22.87)])
def test_the_rarest_words_give_finite_noise(monkeypatch: pytest.MonkeyPatch, word: int, extreme: float) -> None:
    monkeypatch.setattr("executor.noise.philox", lambda counter, _key: (torch.full_like(counter[0], word),) * 4)
    assert gumbel(0, 0, [0], 4).tolist() == [[pytest.approx(extreme, abs=0.01)] * 4]


@pytest.mark.parametrize(
    "other",
    [
        {"positions": range(50, 100)},
        {"request": 8},
        {"purpose": Purpose.RESIDUAL},
        {"seed": 12},
        {"seed": 11 + (1 << 40)},
    ],
)
def test_streams_are_independent(other: dict[str, object]) -> None:
    key: dict[str, object] = {"seed": 11, "request": 7, "positions": range(50), "vocab_size": 400}
    one = gumbel(**key).flatten().numpy()  # type: ignore[arg-type]  # a dict of keywords has one value type
    two = gumbel(**{**key, **other}).flatten().numpy()  # type: ignore[arg-type]
    assert not np.any(one == two)
    # Correlation of independent samples has a standard error of 1 / sqrt(n); ranks, for the heavy tail.
    correlation = stats.spearmanr(one, two).statistic
    assert abs(correlation) <= 4 / np.sqrt(one.size), f"{correlation=:.4f}"


def test_neighbouring_tokens_and_positions_are_independent() -> None:
    noise = gumbel(2, 0, range(300), 400).numpy()
    for pairs in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise[:, 4:], noise[:, :-4])):
        correlation = stats.spearmanr(pairs[0].ravel(), pairs[1].ravel()).statistic
        assert abs(correlation) <= 4 / np.sqrt(pairs[0].size), f"{correlation=:.5f}"


def test_rows_do_not_depend_on_what_was_asked_before() -> None:
    expected = gumbel(5, 9, range(300), 1100)
    table = NoiseTable(5, 9, 1100)
    assert torch.equal(table.rows(250, 3), expected[250:253])
    assert torch.equal(table.rows(0, 1), expected[:1])
    assert torch.equal(table.rows(50, 140), expected[50:190])  # over several blocks
    assert torch.equal(table.at([7, 290, 7, 100]), expected[[7, 290, 7, 100]])
    assert torch.equal(table.at([31]), expected[31:32])
    prepared = NoiseTable(5, 9, 1100)
    prepared.prepare(300)
    assert torch.equal(prepared.rows(0, 300), expected)
    for position in (0, 59, 299):
        assert torch.equal(gumbel(5, 9, [position], 1100), expected[position : position + 1])


def test_a_prefix_of_the_vocabulary_has_the_same_noise() -> None:
    assert torch.equal(gumbel(1, 2, range(5), 1001)[:, :998], gumbel(1, 2, range(5), 998))


def test_a_table_forgets_old_blocks_and_makes_them_again() -> None:
    table = NoiseTable(0, 0, 1 << 17)  # one position a block, sixteen kept
    first = table.rows(0, 1).clone()
    for position in range(1, 20):
        table.rows(position, 1)
    assert len(table._blocks) == 16
    assert torch.equal(table.rows(0, 1), first)


def test_large_keys_are_used_whole_or_refused() -> None:
    assert not torch.equal(gumbel(1, 0, [0], 8), gumbel(1 + (1 << 32), 0, [0], 8))
    assert torch.equal(gumbel(-1, 0, [0], 8), gumbel((1 << 64) - 1, 0, [0], 8))
    with pytest.raises(ValueError, match="must lie in"):
        gumbel(0, 1 << 32, [0], 8)


def test_no_global_generator_is_drawn_from() -> None:
    before = torch.random.get_rng_state()
    NoiseTable(0, 0, 64).rows(0, 40)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.gpu
def test_cuda_makes_the_same_bits() -> None:
    words = [torch.arange(1000), *(torch.full((1000,), word) for word in (1, 2, 3))]
    here = philox((words[0], words[1], words[2], words[3]), (4, 5))
    there = philox((words[0].cuda(), words[1].cuda(), words[2].cuda(), words[3].cuda()), (4, 5))
    assert all(torch.equal(one, two.cpu()) for one, two in zip(here, there, strict=True))
    torch.testing.assert_close(gumbel(1, 1, range(9), 999), gumbel(1, 1, range(9), 999, device="cuda").cpu())

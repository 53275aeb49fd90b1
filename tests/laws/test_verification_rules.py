"""Torch kernels of the private-noise rules against the NumPy laws: same decisions, right frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from executor.noise import Purpose, gumbel, uniform
from sim.decoding.verification import settle
from tests.laws import verification_laws as laws
from tests.laws import verification_rules as kernels
from tests.laws.verification_laws import Rule
from tests.laws.verification_rules import propose, settle_rows, verify

RULES = (Rule.RATIO, Rule.POINT_MASS, Rule.TOP_PLUS_SAMPLE)


def some_rows(num_rows: int, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Target and draft rows, float32: random, with zeros and ties, one-hot, equal."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(2, num_rows, vocab, generator=rng) ** 3
    weights[:, 1::5] = (weights[:, 1::5] * 3).ceil().clamp(max=2)  # ties
    weights[:, 2::5][torch.rand(weights[:, 2::5].shape, generator=rng) < 0.5] = 0
    weights[:, 2::5, 0] += 0.1
    weights[1, 3::5] = torch.eye(vocab)[torch.randint(vocab, (len(weights[1, 3::5]),), generator=rng)]
    weights[1, 4::5] = weights[0, 4::5]
    target, draft = weights / weights.sum(dim=-1, keepdim=True)
    return target, draft


def numbers(num_rows: int, num_candidates: int, seed: int) -> tuple[Tensor, Tensor]:
    positions = range(num_rows)
    accept = uniform(seed, 0, positions, num_candidates, Purpose.ACCEPT)
    accept[::7] = 0.0  # a generator may give it
    return accept, uniform(seed, 0, positions, 1, Purpose.RESIDUAL)[:, 0]


def num_disagreements(rule: Rule, num_candidates: int, vocab: int, seed: int, num_rows: int = 60) -> int:
    """Rows that the kernel settles unlike the specification with the same numbers; some have fewer candidates."""
    target, draft = some_rows(num_rows, vocab, seed)
    noise = gumbel(seed, 0, range(num_rows), vocab, Purpose.DRAFT)
    candidates = propose(rule, draft, num_candidates, noise)
    candidates[5:8, 1:] = -1
    candidates[8:10] = -1
    accept, residual = numbers(num_rows, candidates.shape[1], seed)
    tokens, hits = verify(rule, target, draft, candidates, accept, residual)
    wrong = 0
    for row in range(num_rows):
        expected = laws.verify(
            rule,
            target[row].double().numpy(),
            draft[row].double().numpy(),
            tuple(token for token in candidates[row].tolist() if token >= 0),
            accept[row].tolist(),
            float(residual[row]),
        )
        wrong += (int(tokens[row]), int(hits[row])) != tuple(expected)
    return wrong


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=20, deadline=None)
@given(num_candidates=st.integers(1, 4), vocab=st.integers(2, 40), seed=st.integers(0, 1000))
def test_kernels_decide_as_the_specification(rule: Rule, num_candidates: int, vocab: int, seed: int) -> None:
    assert num_disagreements(rule, num_candidates, vocab, seed) == 0


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("_is_accepted", lambda uniforms, target, draft: uniforms * draft <= target),  # p = 0 passes at u = 0
        ("_is_accepted", lambda uniforms, target, draft: uniforms < 2),  # always accept
        ("_residual", lambda owed, drawn_from: owed),  # residual = p
        ("_renormalised", lambda left, taken: left),  # unrenormalised q after a draw without replacement
    ],
)
def test_broken_kernels_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, mutant: object) -> None:
    assert num_disagreements(Rule.RATIO, 3, 6, 1, 400) == 0
    monkeypatch.setattr(kernels, name, mutant)
    assert num_disagreements(Rule.RATIO, 3, 6, 1, 400) > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_candidates", [1, 3])
def test_emitted_tokens_candidates_and_hits_follow_the_laws(rule: Rule, num_candidates: int) -> None:
    num_draws = 40_000
    target = torch.tensor([0.30, 0.05, 0.20, 0.0, 0.25, 0.20])
    draft = torch.tensor([0.10, 0.40, 0.10, 0.1, 0.0, 0.30])
    rows = target.expand(num_draws, -1), draft.expand(num_draws, -1)
    noise = gumbel(9, 1, range(num_draws), 6, Purpose.DRAFT)
    candidates = propose(rule, rows[1], num_candidates, noise)
    accept = uniform(9, 1, range(num_draws), num_candidates, Purpose.ACCEPT)
    residual = uniform(9, 1, range(num_draws), 1, Purpose.RESIDUAL)[:, 0]
    tokens, hits = verify(rule, *rows, candidates, accept, residual)

    exact = target.double().numpy(), draft.double().numpy()
    proposals = laws.proposal_law(rule, exact[1] / exact[1].sum(), num_candidates)
    cells: dict[tuple[tuple[int, ...], int], float] = {}
    for proposal, probability in proposals:
        law = laws.emitted_law(rule, exact[0] / exact[0].sum(), exact[1] / exact[1].sum(), proposal)
        cells |= {(proposal, token): probability * chance for token, chance in enumerate(law.tolist())}
    found = dict.fromkeys(cells, 0)
    for row, token in zip(candidates.tolist(), tokens.tolist(), strict=True):
        found[tuple(row), token] += 1  # a KeyError is a proposal that the law excludes
    assert all(found[cell] == 0 for cell, chance in cells.items() if chance == 0)
    _assert_fits(np.array(list(found.values())), num_draws * np.array(list(cells.values())))
    _assert_fits(tokens.bincount(minlength=6).numpy(), num_draws * exact[0] / exact[0].sum())
    at_hit = candidates.gather(1, hits.clamp(min=0)[:, None])[:, 0]
    assert torch.equal(hits >= 0, (tokens[:, None] == candidates).any(dim=1))
    assert torch.equal(at_hit[hits >= 0], tokens[hits >= 0])


def _assert_fits(counts: np.ndarray, expected: np.ndarray) -> None:
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 1:  # nothing, or too little to judge
        assert counts[-1] <= 8
        counts, expected = counts[:-1], expected[:-1]
    p_value = stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue if len(counts) > 1 else 1.0
    assert p_value > 1e-4, f"{p_value=:.1e}: {counts} against {expected.round()}"


@pytest.mark.parametrize("rule", RULES)
def test_a_block_settles_as_its_rows_one_after_another(rule: Rule) -> None:
    for seed in range(20):
        target, draft = some_rows(5, 5, seed)
        draft[::2] = target[::2]  # so that long runs are accepted
        candidates = propose(rule, draft, 1, gumbel(seed, 0, range(5), 5, Purpose.DRAFT))
        pending = candidates[:-1, 0].clone()
        candidates[-1] = -1
        verdicts = verify(rule, target, draft, candidates, *numbers(5, 1, seed))
        assert settle_rows(verdicts, pending) == settle(verdicts.tokens.tolist(), pending.tolist())


def test_no_candidates_at_all_is_plain_sampling() -> None:
    target, draft = some_rows(6, 5, 0)
    none = torch.zeros((6, 0), dtype=torch.int64)
    for rule in RULES:
        tokens, hits = verify(rule, target, draft, none, torch.zeros(6, 0), torch.full((6,), 0.999999))
        assert hits.tolist() == [-1] * 6
        assert (target.gather(1, tokens[:, None]) > 0).all()
    only = verify(Rule.RATIO, target[:1], draft[:1], none[:1], torch.zeros(1, 0), torch.zeros(1))
    assert settle_rows(only, torch.zeros(0, dtype=torch.int64)) == (0, int(only.tokens[0]))


def test_what_cannot_be_answered_is_refused() -> None:
    rows = torch.full((1, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"Purpose\.DRAFT"):
        propose(Rule.RATIO, rows, 1, None)
    with pytest.raises(ValueError, match=r"executor\.verification"):
        propose(Rule.SHARED_NOISE, rows, 1, rows)


@pytest.mark.parametrize("rule", RULES)
def test_verification_never_waits_for_the_device(rule: Rule) -> None:
    # Tensors without data: asking for a value would raise.
    rows, columns = torch.empty(5, 8, device="meta"), torch.empty(5, 3, device="meta")
    verdicts = verify(rule, rows, rows, columns.long(), columns, columns[:, 0])
    assert verdicts.tokens.shape == verdicts.hits.shape == (5,)

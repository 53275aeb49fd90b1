"""Verification rules with private noise as torch kernels: the decisions of `tests.laws.verification_laws`, many rows at once.

Shared noise, the default, is `executor.verification`. Here are RATIO, POINT_MASS and TOP_PLUS_SAMPLE. Random numbers
are arguments, from `executor.noise`: Purpose.DRAFT for `propose` (a key of its own for every attempt: a position that
is drafted again needs fresh noise, unlike under shared noise), Purpose.ACCEPT and Purpose.RESIDUAL for `verify` (a key
a position: each position is settled once). No number may serve twice.

Rows of probabilities are float32, (n, vocab); sums and ratios run in float64, so that the same numbers give the
specification's decisions. Nothing waits for the device but the last line of `settle_rows`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from executor.verification import top_tokens
from sim.decoding.verification import Settlement
from tests.laws.verification_laws import Rule

NO_CANDIDATE = -1


class Verdicts(NamedTuple):
    """One row a position. tokens: (n,) emitted. hits: (n,) which candidate that is, -1 when it is none."""

    tokens: Tensor
    hits: Tensor


def propose(rule: Rule, draft_probs: Tensor, num_candidates: int, noise: Tensor | None) -> Tensor:
    """Candidates of each row in the order of the rule: (n, vocab) -> (n, num_candidates).

    noise: (n, vocab) standard Gumbel of the draft's own; None for POINT_MASS, which draws nothing. The noisy top k are
    draws without replacement (Kool et al., arXiv:1903.06059).
    """
    _check(rule)
    num_candidates = min(num_candidates, draft_probs.shape[-1])
    if rule is Rule.POINT_MASS:
        return top_tokens(draft_probs, num_candidates)
    if noise is None:
        raise ValueError(f"the rule {rule.value} draws candidates; give noise with Purpose.DRAFT.")
    num_best = num_candidates - 1 if rule is Rule.TOP_PLUS_SAMPLE else 0
    best = top_tokens(draft_probs, num_best) if num_best else draft_probs.new_zeros((len(draft_probs), 0)).long()
    # Tokens without probability come behind all others, lower ids first; taken ones never.
    scores = torch.where(draft_probs > 0, draft_probs.log() + noise, torch.finfo(torch.float32).min)
    scores = scores.scatter(-1, best, float("-inf"))
    return torch.cat([best, top_tokens(scores, num_candidates - num_best)], dim=-1)


def verify(
    rule: Rule,
    target_probs: Tensor,
    draft_probs: Tensor,
    candidates: Tensor,
    accept_uniforms: Tensor,
    residual_uniforms: Tensor,
) -> Verdicts:
    """Settle every row by itself.

    target_probs, draft_probs: (n, vocab), after temperature and filters; a row without candidates may hold anything in
    draft_probs. candidates: (n, k) from `propose`, rows with fewer padded at the end by -1. accept_uniforms: (n, k),
    the test of a candidate uses its own column. residual_uniforms: (n,). Uniforms lie in [0, 1).
    """
    _check(rule)
    num_rows, num_columns = candidates.shape
    are_given = candidates != NO_CANDIDATE
    counts = are_given.sum(dim=-1)
    owed, left = target_probs.double(), draft_probs.double()
    tokens = torch.full((num_rows,), NO_CANDIDATE, device=candidates.device)
    for column in range(num_columns if rule is not Rule.POINT_MASS else 0):
        token = candidates[:, column].clamp(min=0)
        is_tested = are_given[:, column] if rule is Rule.RATIO else counts == column + 1
        drawn_from = _renormalised(left, candidates[:, :column])
        at_token = token[:, None]
        is_kept = _is_accepted(
            accept_uniforms[:, column], owed.gather(-1, at_token)[:, 0], drawn_from.gather(-1, at_token)[:, 0]
        )
        tokens = torch.where((tokens == NO_CANDIDATE) & is_tested & is_kept, token, tokens)
        owed = torch.where(is_tested[:, None], _residual(owed, drawn_from), owed)
        left = left.scatter(-1, at_token, left.gather(-1, at_token).masked_fill(are_given[:, column : column + 1], 0.0))
    tokens = torch.where(tokens == NO_CANDIDATE, _inverted(owed, residual_uniforms), tokens)
    is_candidate = tokens[:, None] == candidates
    hits = (
        torch.where(is_candidate.any(dim=-1), is_candidate.int().argmax(dim=-1), -1) if num_columns else tokens * 0 - 1
    )
    return Verdicts(tokens, hits)


def settle_rows(verdicts: Verdicts, pending: Tensor) -> Settlement:
    """Accept pending tokens while they are emitted; the first other token follows. Waits for the device, once.

    verdicts: L + 1 rows, at each pending position and after the last. pending: (L,). The emitted token of a row counts
    only when all pending tokens before it were accepted; the rows are then what the rule owes.
    """
    is_accepted = verdicts.tokens[:-1] == pending
    num_accepted = is_accepted.long().cumprod(dim=0).sum()[None]
    found = torch.cat([num_accepted, verdicts.tokens.gather(0, num_accepted)])  # no indexing: that would wait
    num, token = found.tolist()
    return Settlement(num, token)


def _is_accepted(uniforms: Tensor, target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """u < p / q without dividing, strictly: a token with p = 0 fails even when u is 0."""
    return uniforms.double() * draft_probs < target_probs


def _renormalised(left: Tensor, taken: Tensor) -> Tensor:
    """Rows with some tokens zeroed, made laws again; where nothing is left, all on the lowest id that is not taken."""
    total = left.sum(dim=-1, keepdim=True)
    if not taken.shape[-1]:
        return left / torch.where(total > 0, total, 1.0)
    is_open = torch.ones_like(left).scatter(-1, taken.clamp(min=0), 0.0)
    lowest = torch.zeros_like(left).scatter(-1, is_open.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where(total > 0, left / total, lowest)


def _residual(owed: Tensor, drawn_from: Tensor) -> Tensor:
    """max(p - q, 0) renormalised; p itself where they are equal and nothing is ever rejected."""
    over = (owed - drawn_from).clamp(min=0)
    total = over.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, over / total, owed)


def _inverted(law: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulated law of a row passes u: never one of probability 0. (n, vocab), (n,) -> (n,)."""
    cumulative = law.cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniforms.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _check(rule: Rule) -> None:
    if rule is Rule.SHARED_NOISE:
        raise ValueError("shared noise tests nothing; use executor.verification: noisy_scores, choose and settle.")

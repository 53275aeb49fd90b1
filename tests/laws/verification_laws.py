"""Verification rules as laws: what a draft proposes, and what is emitted, with exact probabilities (NumPy, float64).

Four lossless rules behind one interface. At one position let p be the target's law and q the draft's, both after
temperature and filters. A rule proposes k candidates; the target emits a token
t; the position is a hit when t is among them. For every rule sum over proposals of P(proposal) P(t | proposal) = p(t),
and `emitted_law` lets anyone check it. `tests.laws.verification_rules` holds the same decisions on tensors.

SHARED_NOISE     candidates are the top k of log q + g, t = argmax(log p + g) (Daliri et al., arXiv:2408.07978).
RATIO            k = 1: draft from q, keep with min(1, p / q), else draw from the residual (Leviathan et al.,
                 arXiv:2211.17192; Chen et al., arXiv:2302.01318). k > 1: candidates drawn without replacement, tested
                 in turn (SpecInfer, Miao et al., arXiv:2305.09781).
POINT_MASS       candidates are the top k of q, t is drawn from p. EAGLE's rule in other words.
TOP_PLUS_SAMPLE  the top k - 1 of q, and one draw from the rest of q, tested by RATIO against that rest (the scheme of
                 Hu et al., arXiv:2502.18779). k = 1 is RATIO.

All ties are broken towards the lower token id.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sim.decoding.policies.base import Policy
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from sim.decoding.verification import Floats, top_tokens
from tests.laws.noise_regions import by_order, everything


class Rule(enum.StrEnum):
    """How drafted tokens are verified. Every rule is lossless; they differ in how often the draft is right."""

    SHARED_NOISE = "shared_noise"
    RATIO = "ratio"
    POINT_MASS = "point_mass"
    TOP_PLUS_SAMPLE = "top_plus_sample"


class Proposal(NamedTuple):
    """Candidates in the order of the rule, and how probable it is that the draft proposes them."""

    tokens: tuple[int, ...]
    probability: float


class Trial(NamedTuple):
    """How a position is settled, given its candidates: test some in turn, and if all fail draw from the remainder.

    tested: tokens. chances: of acceptance, each given that its test is reached. remainder: (vocab,) law.
    """

    tested: tuple[int, ...]
    chances: tuple[float, ...]
    remainder: Floats


class Outcome(NamedTuple):
    """The emitted token, and which candidate it is; -1 when it is none of them."""

    token: int
    hit: int


def accept_probability(target_prob: float, draft_prob: float) -> float:
    """min(1, p / q) of a token drawn from q; 0 wherever p is 0 (Leviathan et al. 2023, Algorithm 1)."""
    return min(1.0, target_prob / draft_prob) if draft_prob > 0 else float(target_prob > 0)


def residual_law(target_probs: Floats, draft_probs: Floats) -> Floats:
    """max(p - q, 0), renormalised: what is still owed after a rejection. (vocab,) -> (vocab,).

    p itself where p = q: then nothing is ever rejected, and rounding must not make it 0 / 0.
    """
    owed = np.maximum(target_probs - draft_probs, 0)
    total = owed.sum()
    return np.asarray(owed / total if total > 0 else target_probs, dtype=np.float64)


def without(draft_probs: Floats, tokens: Sequence[int]) -> Floats:
    """The draft's law without some tokens, renormalised; all on the lowest other id when it had no other mass.

    A rule stays exact whatever this law is, as long as the candidate is drawn from it.
    """
    left = np.array(draft_probs, dtype=np.float64)
    left[list(tokens)] = 0
    if left.sum() == 0:
        left[next(token for token in range(len(left)) if token not in tokens)] = 1
    return np.asarray(left / left.sum(), dtype=np.float64)


def candidate_law(rule: Rule, draft_probs: Floats, earlier: Sequence[int], num_candidates: int) -> Floats:
    """Law of the next candidate, given the earlier ones of the same position: (vocab,).

    SHARED_NOISE: of the noisy order alone, which by the Gumbel-max trick is drawing without replacement as well.
    """
    is_best = rule is Rule.POINT_MASS or (rule is Rule.TOP_PLUS_SAMPLE and len(earlier) < num_candidates - 1)
    if not is_best:
        return without(draft_probs, earlier)
    law = np.zeros(len(draft_probs))
    law[next(token for token in top_tokens(draft_probs, len(earlier) + 1).tolist() if token not in earlier)] = 1
    return law


def proposal_law(rule: Rule, draft_probs: Floats, num_candidates: int) -> list[Proposal]:
    """Every proposal of positive probability. num_candidates: k >= 1, cut to the vocabulary."""
    if num_candidates < 1:
        raise ValueError(
            f"num_candidates must be at least 1, but got {num_candidates}; without a draft use emitted_law."
        )
    num_candidates = min(num_candidates, len(draft_probs))
    found = [Proposal((), 1.0)]
    for _ in range(num_candidates):
        found = [
            Proposal((*tokens, token), probability * float(law[token]))
            for tokens, probability in found
            for law in [candidate_law(rule, draft_probs, tokens, num_candidates)]
            for token in np.flatnonzero(law).tolist()
        ]
    return found


def trial(rule: Rule, target_probs: Floats, draft_probs: Floats, candidates: Sequence[int]) -> Trial:
    """Tests and remainder of a rule with private noise, for the candidates of one position (none: t is from p)."""
    if rule is Rule.SHARED_NOISE:
        raise ValueError("under shared noise nothing is tested: the target emits argmax(log p + g); see emitted_law.")
    tested = list(candidates) if rule is Rule.RATIO else list(candidates[-1:])
    owed, chances = np.array(target_probs, dtype=np.float64), []
    if rule is Rule.POINT_MASS:
        tested = []
    for token in tested:
        earlier = candidates[: list(candidates).index(token)]
        drawn_from = without(draft_probs, earlier)
        chances.append(accept_probability(float(owed[token]), float(drawn_from[token])))
        owed = residual_law(owed, drawn_from)
    return Trial(tuple(tested), tuple(chances), owed)


def emitted_law(rule: Rule, target_probs: Floats, draft_probs: Floats, candidates: Sequence[int]) -> Floats:
    """Law of the emitted token given the candidates, (vocab,). It is a hit exactly when it is one of them.

    Exact for every rule; under shared noise in closed form for one candidate, else by `tests.laws.noise_regions`, whose cost
    grows fast with the vocabulary (up to about 5).
    """
    if rule is Rule.SHARED_NOISE:
        return _shared_noise_law(target_probs, draft_probs, candidates)
    tested, chances, remainder = trial(rule, target_probs, draft_probs, candidates)
    law, reached = np.zeros(len(target_probs)), 1.0
    for token, chance in zip(tested, chances, strict=True):
        law[token] += reached * chance
        reached *= 1 - chance
    return law + reached * remainder


def hit_probability(rule: Rule, target_probs: Floats, draft_probs: Floats, num_candidates: int) -> float:
    """Chance that the emitted token is one of k candidates: the acceptance for k = 1, the branch hit rate beyond."""
    return sum(
        probability * float(emitted_law(rule, target_probs, draft_probs, tokens)[list(tokens)].sum())
        for tokens, probability in proposal_law(rule, draft_probs, num_candidates)
    )


def verify(
    rule: Rule,
    target_probs: Floats,
    draft_probs: Floats,
    candidates: Sequence[int],
    accept_uniforms: Sequence[float],
    residual_uniform: float,
) -> Outcome:
    """Settle one position with given random numbers in [0, 1): what the torch kernels must decide as well.

    accept_uniforms: one for each candidate, used by its test only. residual_uniform: for the remainder, by inversion.
    """
    tested, chances, remainder = trial(rule, target_probs, draft_probs, candidates)
    uniforms = accept_uniforms[len(candidates) - len(tested) :]  # the tested ones are the last
    for token, chance, uniform in zip(tested, chances, uniforms, strict=False):
        if is_accepted(uniform, chance):
            return Outcome(token, list(candidates).index(token))
    cumulative = np.cumsum(remainder)
    token = int(np.searchsorted(cumulative, residual_uniform * cumulative[-1], side="right"))
    return Outcome(token, list(candidates).index(token) if token in candidates else -1)


def is_accepted(uniform: float, chance: float) -> bool:
    """u < chance, strictly: u can be 0, and a token that the target never emits must fail then too."""
    return uniform < chance


def shared_noise_joint(target_probs: Floats, draft_probs: Floats) -> Floats:
    """P(argmax(log q + g) = x, argmax(log p + g) = y) for one Gumbel vector g: (vocab, vocab), x down, y across; exact.

    With g = -log E, u = E_x / q_x and v = E_y / p_y, the event x /= y is E_i > max(q_i u, p_i v) for all other i and
    r = v / u between q_y / p_y and q_x / p_x. Integrating over E and then u leaves, with A(r) = sum_i max(q_i, r p_i),

        P(x, y) = q_x p_y integral of dr / A(r)^2 from q_y / p_y to q_x / p_x   (0 if that is empty),

    and A is linear between the ratios q_i / p_i, so that a step from r to s adds (s - r) / (A(r) A(s)). On the diagonal
    P(x, x) = 1 / sum_y max(p_y / p_x, q_y / q_x) (Daliri et al.).
    """
    p, q = np.asarray(target_probs, dtype=np.float64), np.asarray(draft_probs, dtype=np.float64)
    ratios = np.divide(q, p, out=np.where(q > 0, np.inf, 0.0), where=p > 0)
    grid = np.unique(np.append(ratios[np.isfinite(ratios)], 0.0))
    heights = np.maximum(q, grid[:, None] * p).sum(axis=1)
    steps = np.diff(grid) / (heights[:-1] * heights[1:])
    integrals = np.concatenate([[0.0], np.cumsum(steps)])
    beyond = integrals[-1] + 1 / (p.sum() * heights[-1])  # A grows like r sum(p) after the last ratio
    finite = np.isfinite(ratios)
    reached = np.full(len(p), beyond)
    reached[finite] = integrals[np.searchsorted(grid, ratios[finite])]
    joint = np.outer(q, p) * np.maximum(reached[:, None] - reached[None, :], 0)
    both = np.flatnonzero((p > 0) & (q > 0))
    joint[both, both] = q[both] / np.maximum(q, ratios[both][:, None] * p).sum(axis=1)
    return np.asarray(joint, dtype=np.float64)


def check_pairing(rule: Rule, policy: Policy) -> None:
    """Refuse a policy that reads the draft's noise under a rule whose proof needs that noise to be fresh.

    Under SHARED_NOISE no decision can change the output. Under RATIO and TOP_PLUS_SAMPLE a token may be withheld on
    grounds of what was known before it was drawn, never of the draw: tested tokens would no longer have the law q.
    """
    if rule in (Rule.SHARED_NOISE, Rule.POINT_MASS) or not dataclasses.is_dataclass(policy):
        return
    for field in dataclasses.fields(policy):
        if getattr(policy, field.name) is ConfidenceSignal.MARGIN:
            raise ValueError(
                f"{type(policy).__name__}({field.name}=margin) reads the noise that the draft's tokens were "
                f"drawn with, which the rule {rule.value} does not allow; use {field.name}=max_prob or shared noise."
            )


def _shared_noise_law(target_probs: Floats, draft_probs: Floats, candidates: Sequence[int]) -> Floats:
    if not candidates:
        return np.array(target_probs)
    if len(candidates) == 1:
        joint = shared_noise_joint(target_probs, draft_probs)[candidates[0]]
        return np.asarray(joint / draft_probs[candidates[0]], dtype=np.float64)
    orders = by_order(everything(len(draft_probs)), draft_probs.tolist(), len(candidates))
    known = next((part for _, order, part in orders if order == tuple(candidates)), None)
    if known is None:
        raise ValueError(f"the noisy order of {draft_probs} never begins with {tuple(candidates)}.")
    law = np.zeros(len(target_probs))
    for probability, (token,), _ in by_order(known, target_probs.tolist(), 1):
        law[token] = probability
    return law

"""Verification with shared noise: the specification, in NumPy. `executor.verification` is the same on tensors.

Daliri et al., "Coupling without communication and drafter-invariant speculative decoding" (arXiv:2408.07978): target
and draft add the same Gumbel vector g, one per position, to their log-probabilities. The target emits
argmax(log p + g), whatever the draft did; a draft token is accepted when it equals that token. The law of the output is
p because g is fresh at every position, and the output is a function of p and g alone, hence the same for every draft
and every policy.

One order serves everything here: larger first, and among equals the lower token id.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from traces.schema import Sampling

Floats: TypeAlias = NDArray[np.float64]


class Settlement(NamedTuple):
    """What verification yields: how many pending tokens are kept, and the target's own token after them."""

    num_accepted: int
    next_token: int


def transform(logits: Floats, sampling: Sampling) -> Floats:
    """Log-probabilities of the law that is sampled: temperature, then top-k, then top-p, renormalised.

    logits: (..., vocab), any additive constant. Returns (..., vocab) float64, -inf where filtered.

    Temperature 0 puts all mass on the best token. Top-k keeps exactly top_k tokens. Top-p keeps the shortest run of
    best tokens whose probability, after top-k, reaches top_p, and always one.

    >>> np.exp(transform(np.log([0.5, 0.3, 0.2]), Sampling(temperature=1.0, top_p=0.6))).round(3)
    array([0.625, 0.375, 0.   ])
    """
    logits = np.asarray(logits, dtype=np.float64)
    order = np.argsort(-logits, axis=-1, kind="stable")
    if sampling.temperature == 0:
        kept = np.arange(logits.shape[-1]) < 1
        return _log_normalised(np.where(_unsorted(np.broadcast_to(kept, logits.shape), order), logits, -np.inf))
    scaled = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _log_normalised(scaled)
    ranked = np.take_along_axis(scaled, order, axis=-1)
    if sampling.top_k > 0:
        ranked[..., sampling.top_k :] = -np.inf
    probs = np.exp(_log_normalised(ranked))
    before = np.cumsum(probs, axis=-1) - probs
    kept = np.isfinite(ranked)
    if sampling.top_p < 1:
        kept &= before < sampling.top_p
    return _log_normalised(np.where(_unsorted(kept, order), scaled, -np.inf))


def noisy_scores(logits: Floats, sampling: Sampling, noise: Floats | None) -> Floats:
    """What target and draft take the argmax of: log-probabilities plus shared noise; the logits at temperature 0.

    logits: (..., vocab). noise: (..., vocab) standard Gumbel, or None for none. Constants within a row do not matter.
    """
    if sampling.temperature == 0:
        return np.asarray(logits, dtype=np.float64)
    scores = transform(logits, sampling)
    return scores if noise is None else scores + noise


def choose(scores: Floats) -> NDArray[np.int64]:
    """Best token of each row, (..., vocab) -> (...)."""
    return np.asarray(np.argmax(scores, axis=-1), dtype=np.int64)


def top_tokens(scores: Floats, num_tokens: int) -> NDArray[np.int64]:
    """The best tokens of each row, best first: (..., vocab) -> (..., num_tokens)."""
    return np.argsort(-np.asarray(scores), axis=-1, kind="stable")[..., :num_tokens]


def settle(target_tokens: Sequence[int], pending_tokens: Sequence[int]) -> Settlement:
    """Accept pending tokens while they equal the target's; the target's next token follows.

    target_tokens: the target's token at each pending position and after the last, one more than pending_tokens.

    >>> settle([5, 7, 9, 4], [5, 7, 8])
    Settlement(num_accepted=2, next_token=9)
    """
    if len(target_tokens) != len(pending_tokens) + 1:
        raise ValueError(
            f"settle needs one target token more than pending tokens, but got {len(target_tokens)} and "
            f"{len(pending_tokens)}."
        )
    num_accepted = 0
    while num_accepted < len(pending_tokens) and target_tokens[num_accepted] == pending_tokens[num_accepted]:
        num_accepted += 1
    return Settlement(num_accepted, int(target_tokens[num_accepted]))


def rank_of(token: int, scores: Floats) -> int:
    """Place of a token in the order of its row, 0 is best. scores: (vocab,)."""
    scores = np.asarray(scores)
    score = scores[token]
    return int(np.count_nonzero(scores > score) + np.count_nonzero(scores[:token] == score))


def noisy_margin(scores: Floats) -> Floats:
    """Best minus second best score of each row, (..., vocab) -> (...): how sure the choice is; inf if one is left.

    With scores log q + g it predicts acceptance better than any function of q, since acceptance depends on g too.
    """
    ranked = np.sort(np.asarray(scores), axis=-1)
    return np.asarray(ranked[..., -1] - ranked[..., -2], dtype=np.float64)


def _log_normalised(scores: Floats) -> Floats:
    """Log-softmax of each row, which has at least one finite entry."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)


def _unsorted(is_kept: NDArray[np.bool_], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Undo the sorting of each row."""
    original = np.empty_like(is_kept)
    np.put_along_axis(original, order, is_kept, axis=-1)
    return original

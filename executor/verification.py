"""Verification with shared noise in torch: `sim.decoding.verification` on float32 rows, never waiting for the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from executor.errors import LogitsError
from traces.schema import Sampling


def noisy_scores(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """What target and draft take the argmax of, (n, vocab) float32; -inf where top-k or top-p filter.

    logits: (n, vocab). noise: (n, vocab) or (1, vocab), or None for none. Rows are log-probabilities (plus noise) up to
    a constant; at temperature 0 they are the logits.
    """
    if sampling.temperature == 0:
        return logits
    if sampling.top_k > 0 or sampling.top_p < 1:
        logits = logits.masked_fill(~_is_kept(logits, sampling), float("-inf"))
    if noise is None:
        return logits / sampling.temperature
    return torch.add(noise, logits, alpha=1 / sampling.temperature)  # one kernel


def choose(scores: Tensor) -> Tensor:
    """Best token of each row, (n, vocab) -> (n,); the lowest id among equals, as torch.argmax documents."""
    return scores.argmax(dim=-1)


def check_finite(best: Sequence[float], role: str, *, first_position: int, dtype: torch.dtype) -> None:
    """Raises `LogitsError` where the score of a chosen token, (n,), is not a finite number, which it is not as soon as one
    logit of its row is NaN or infinite.

    first_position: of the first row's newest token in its sequence. dtype: that the model runs in.
    """
    for row, score in enumerate(best):
        if not math.isfinite(score):
            raise LogitsError(
                role,
                f"the {role}'s logits after position {first_position + row} hold {score} in "
                f"{str(dtype).removeprefix('torch.')}: its weights are damaged, or the dtype overflows (try another one).",
            )


def top_tokens(scores: Tensor, num_tokens: int) -> Tensor:
    """The best tokens of each row, best first, lower ids before higher among equals: (n, vocab) -> (n, num_tokens)."""
    num_tokens = min(num_tokens, scores.shape[-1])
    if scores.device.type == "cpu":
        # topk leaves the order of equals open. One value more shows whether there are any; there hardly ever are.
        values, tokens = scores.topk(min(num_tokens + 1, scores.shape[-1]), dim=-1)
        if not bool((values[:, 1:] == values[:, :-1]).any()):
            return tokens[:, :num_tokens]
    return _order_keys(scores).topk(num_tokens, dim=-1).indices


def ranks_of(tokens: Tensor, scores: Tensor) -> Tensor:
    """Place of one token in the order of each row, 0 is best: (n,), (n, vocab) -> (n,)."""
    score = scores.gather(-1, tokens[:, None])
    is_lower_id = torch.arange(scores.shape[-1], device=scores.device) < tokens[:, None]
    return ((scores > score) | ((scores == score) & is_lower_id)).sum(dim=-1)


def signals(logits: Tensor, scores: Tensor, sampling: Sampling) -> Tensor:
    """How sure each row is, (n, 3): largest probability, entropy in nats, noisy margin (see `traces.schema.Signal`).

    scores: `noisy_scores` of these logits. The first two are of the law that is sampled; at temperature 0, where that
    law is a point, of the softmax of the logits. The margin is inf where a filter leaves one token.
    """
    scaled = logits if sampling.temperature in (0, 1) else logits / sampling.temperature
    if sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1):
        scaled = scaled.masked_fill(scores == float("-inf"), float("-inf"))
    log_probs = scaled.log_softmax(dim=-1)
    probs = log_probs.exp()
    # Filtered tokens have p log p = 0, and rounding must not make an entropy negative.
    entropy = torch.linalg.vecdot(probs, log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).neg_().clamp_(min=0)
    best = scores.topk(2, dim=-1).values
    return torch.stack([probs.amax(dim=-1), entropy, best[:, 0] - best[:, 1]], dim=-1)


def _is_kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """Tokens that top-k and top-p leave, (n, vocab). Sums in float64, to keep the same ones as the specification."""
    if sampling.top_k > 0:
        order = top_tokens(logits, sampling.top_k)
    else:
        order = logits.sort(dim=-1, descending=True, stable=True).indices
    probs = (logits.gather(-1, order).double() / sampling.temperature).softmax(dim=-1)
    is_kept = probs.cumsum(dim=-1) - probs < sampling.top_p  # of the best token always: it has nothing before it
    if sampling.top_p == 1:
        is_kept = torch.ones_like(is_kept)  # rounding may bring the sum to 1 before the last token
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, is_kept)


def _order_keys(scores: Tensor) -> Tensor:
    """int64 keys, no two equal in a row, in the order of the scores with lower ids first among equals."""
    bits = (scores.float() + 0.0).view(torch.int32).long()  # adding zero makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats count down
    return (ordered << 32) - torch.arange(scores.shape[-1], device=scores.device)

"""After a run: everything an outcome depends on, for one finished sequence (the alignment trace and its tails).

One teacher-forced pass of the draft gives the rank of every committed token in the draft's noisy order and the draft's
signals; short free rollouts after each of its wrong tokens give the signals that an adaptive policy would have seen there.
Nothing here is timed or in the decoding loop, so recording costs no throughput.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.loop import Decoded
from executor.models.engines.base import Engine, ids_of
from executor.noise import NoiseTable
from executor.roles.target import Target
from executor.verification import choose, noisy_scores, signals, top_tokens
from sim.decoding.machine import ClassProbs
from traces.schema import RequestTrace, Sampling, Signal, TokenChances

NUM_TOP = 8
MAX_ROLLED_TOKENS = 512  # of all rollouts that run as one batch


@dataclass(frozen=True)
class Annotation:
    """An alignment trace and the further columns of the alignment table, arrays of N entries each."""

    trace: RequestTrace
    columns: dict[str, NDArray[np.generic] | list[list[int]] | list[list[float]]]
    num_near_ties: int


def annotate(
    decoded: Decoded, *, request_id: int, engine: Engine, target: Target, noise: NoiseTable | None, tail_depth: int
) -> Annotation:
    """Align a finished request: one forward of each model along it, and rollouts of the draft.

    noise: the table that the request was decoded with, None at temperature 0. The draft engine's cache is overwritten.
    num_near_ties counts positions where the best two scores differ by less than 1e-4, so that batching may flip them.
    """
    request, tokens = decoded.request, decoded.tokens
    num_prompt, num_tokens = len(request.tokens), len(tokens)
    sequence = [*request.tokens, *tokens]

    engine.reset()
    if num_prompt > 1:
        engine.extend(sequence[: num_prompt - 1], last_only=True)
    logits = engine.extend(sequence[num_prompt - 1 :])  # (N + 1, columns): row i is the law of position i
    rows = noise.rows(0, num_tokens + 1) if noise is not None else None
    scores = noisy_scores(logits, request.sampling, rows)
    head = engine.head_tokens
    committed = torch.tensor(tokens, device=scores.device)
    ranks = _ranks(scores[:-1], committed, head)
    laws = _as_signals(logits, scores, request.sampling)
    firsts = ids_of(choose(scores), head).tolist()
    tails = _roll_out(engine, num_prompt, ranks, firsts, laws[-1], request.sampling, noise, tail_depth)

    law = Sampling(request.sampling.temperature or 1.0, request.sampling.top_k, request.sampling.top_p)
    plain = noisy_scores(logits[:-1], law, None)
    draft_probs = torch.softmax(plain, -1)
    bests = ids_of(choose(plain), head).cpu().numpy()
    asked = np.stack([tokens, bests], axis=1)  # of the target's laws: its own tokens, the draft's most probable ones
    target_columns, target_probs, class_probs = _scored(
        target, sequence, num_prompt, request.sampling, draft_probs.cpu().numpy(), asked, head
    )
    trace = RequestTrace(
        request_id=request_id,
        prompt_id=request.prompt_id,
        num_prompt_tokens=num_prompt,
        max_new_tokens=request.max_new_tokens,
        temperature=request.sampling.temperature,
        finish_reason=decoded.finish_reason,
        ranks=tuple(ranks),
        signals=tuple(laws[:-1]),
        tails=tails,
        tail_depth=tail_depth,
        class_probs=class_probs,
        chances=_chances(plain, draft_probs, committed, target_probs, head),
    )
    best = top_tokens(scores[:-1], NUM_TOP)
    columns: dict[str, NDArray[np.generic] | list[list[int]] | list[list[float]]] = {
        "token": np.asarray(tokens, np.int32),
        "draft_top_ids": ids_of(best, head).tolist(),
        "draft_top_probs": draft_probs.gather(-1, best).tolist(),
        **target_columns,
    }
    gaps = scores.topk(2, -1).values.diff(dim=-1).abs()
    return Annotation(trace, columns, int((gaps < 1e-4).sum()))


def _ranks(scores: Tensor, tokens: Tensor, head_tokens: Tensor | None) -> list[int]:
    """Rank of each row's token: higher scores, and equal ones of lower index, stand before it.

    A token that the head lacks has probability 0 and stands behind all that the head knows.
    """
    columns, is_known = _columns_of(tokens, head_tokens)
    own = scores.gather(-1, columns[:, None])
    index = torch.arange(scores.shape[-1], device=scores.device)
    rank = ((scores > own) | ((scores == own) & (index < columns[:, None]))).sum(-1)
    rank = torch.where(is_known, rank, scores.shape[-1])
    return [int(place) for place in rank.tolist()]


def _chances(
    plain: Tensor, probs: Tensor, committed: Tensor, target_probs: NDArray[np.float64], head_tokens: Tensor | None
) -> tuple[TokenChances, ...]:
    """Of the committed tokens. plain, probs: (N, columns) scores of the draft without noise, and their law. target_probs:
    (N, 2) p of the token, and of the draft's most probable one."""
    columns, is_known = _columns_of(committed, head_tokens)
    own = probs.gather(-1, columns[:, None])[:, 0] * is_known
    ranks = _ranks(plain, committed, head_tokens)
    return tuple(
        TokenChances(of_token, draft, of_best, rank)
        for (of_token, of_best), draft, rank in zip(target_probs.tolist(), own.tolist(), ranks, strict=True)
    )


def _columns_of(tokens: Tensor, head_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Columns of tokens in a head's logits, and whether the head knows them (any column where it does not)."""
    if head_tokens is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    columns = torch.searchsorted(head_tokens, tokens).clamp_(max=len(head_tokens) - 1)
    return columns, head_tokens[columns] == tokens


def _as_signals(logits: Tensor, scores: Tensor, sampling: Sampling) -> list[Signal]:
    return [Signal(*row) for row in signals(logits, scores, sampling).tolist()]


def _roll_out(
    engine: Engine,
    num_prompt: int,
    ranks: Sequence[int],
    firsts: Sequence[int],
    last_law: Signal,
    sampling: Sampling,
    noise: NoiseTable | None,
    depth: int,
) -> dict[int, tuple[Signal, ...]]:
    """The draft's own continuations after each wrong token, and after the last committed one."""
    if depth < 1:
        return {}
    num_tokens = len(ranks)
    starts = [position for position, rank in enumerate(ranks) if rank > 0]
    tails: dict[int, list[Signal]] = {position: [] for position in starts} | {num_tokens: [last_law]}
    starts.append(num_tokens)
    room = (engine.capacity - engine.length) // depth
    if room < 1:
        raise ValueError(
            f"no room for rollouts of {depth} tokens behind {engine.length} cached ones (capacity {engine.capacity}); "
            "load the draft with a larger capacity or use a smaller tail_depth."
        )
    num_rows = min(room, max(1, MAX_ROLLED_TOKENS // depth))
    for first in range(0, len(starts), num_rows):
        group = starts[first : first + num_rows]
        engine.open_branches([num_prompt + position for position in group])
        newest = [firsts[position] for position in group]
        for step in range(depth):
            logits = engine.grow(newest)
            rows = None
            if noise is not None:
                rows = noise.at([position + 1 + step for position in group])
            scores = noisy_scores(logits, sampling, rows)
            for position, signal in zip(group, _as_signals(logits, scores, sampling), strict=True):
                tails[position].append(signal)
            newest = ids_of(choose(scores), engine.head_tokens).tolist()
    return {position: tuple(laws[:depth]) for position, laws in tails.items()}


def _scored(
    target: Target,
    sequence: Sequence[int],
    num_prompt: int,
    sampling: Sampling,
    draft_probs: NDArray[np.float32],
    asked: NDArray[np.int64],
    head_tokens: Tensor | None = None,
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float64], tuple[ClassProbs, ...]]:
    """Largest probability, entropy and second log-moment of the target's laws, their overlap with the draft's; (N, 2)
    probabilities of the asked tokens; classes, if H-RAD runs. draft_probs: (N, columns), of the tokens that the draft's head
    knows."""
    columns = slice(None) if head_tokens is None else head_tokens.cpu().numpy()
    stats, moments, overlaps, found, classes, first = [], [], [], [], [], 0
    for chunk in target.score(sequence, num_prompt, sampling):
        num = len(chunk.probs)
        overlaps.append(np.minimum(chunk.probs[:, columns], draft_probs[first : first + num]).sum(-1))
        found.append(np.take_along_axis(chunk.probs, asked[first : first + num], axis=-1))
        log_probs = np.log(np.where(chunk.probs > 0, chunk.probs, 1.0))  # what a filter left out adds nothing
        moments.append((chunk.probs * log_probs**2).sum(-1))
        stats.append(chunk.stats)
        classes.append(chunk.class_probs)
        first += num
    both = np.concatenate(stats)
    values = {
        "target_max_prob": both[:, 0],
        "target_entropy": both[:, 1],
        "target_log_moment": np.concatenate(moments),
        "overlap": np.concatenate(overlaps),
    }
    return (
        values,
        np.concatenate(found).astype(np.float64),
        tuple((row[0], row[1], row[2]) for row in np.concatenate(classes).tolist()),
    )

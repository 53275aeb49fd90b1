"""Speed-of-light lines: what no draft length rule, and no drafter at all, can beat on a recorded trace.

Each family of methods has its own. Serial oracle (speculative sampling and its stopping rules): knows how many draft tokens
will be accepted, drafts exactly these (at most the draft length) and verifies. Branch oracle (PEARL with one branch,
SpecBranch with several): the window always ends at the first wrong token, and the branches there are all that is hedged.
Overlap oracle (SSD, outcome hedging): every outcome was drafted for ahead of time, so that a round takes the longer of
its verification and the drafting of the next round's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.replay import next_mismatches
from sim.latency.base import LatencyModel
from sim.sweep.sweep import sweep
from traces.metrics.round_time import round_seconds
from traces.schema import OpKind, RequestTrace, Signal

Floats = NDArray[np.float64]
SURE, DOUBTFUL = Signal(0.99, 0.05, 6.0), Signal(0.01, 4.0, 0.01)


def oracle_speedups(
    traces: Sequence[RequestTrace], latency: LatencyModel, lengths: Sequence[int], *, overlaps: bool = False
) -> pd.DataFrame:
    """Columns draft_length, tokens_per_forward, speedup (over autoregressive decoding), mean latencies, two devices."""
    rows = []
    base_s = sum(_autoregressive_s(trace, latency) for trace in traces)
    num_tokens = sum(trace.num_tokens for trace in traces)
    for length in lengths:
        seconds, num_rounds = 0.0, 0
        for trace in traces:
            start, accepted = _oracle_rounds(trace, length)
            sequence = trace.num_prompt_tokens + start
            host = latency.mean_array(OpKind.HOST, accepted, 1 if overlaps else 0, sequence - 1)
            verify = latency.mean_array(OpKind.VERIFY, accepted + 1, 1, sequence - 1)
            draft = accepted * latency.mean_array(OpKind.DRAFT, 1, 1, sequence)
            if overlaps:  # while this round is verified, the next one's tokens are drafted
                seconds += float(draft[0] + round_seconds(0.0, np.append(draft[1:], 0.0), verify, host).sum())
            else:
                seconds += float(round_seconds(draft, 0.0, verify, host).sum())
            num_rounds += len(start)
        rows.append((length, num_tokens / num_rounds, base_s / seconds))
    return pd.DataFrame(rows, columns=["draft_length", "tokens_per_forward", "speedup"])


def branch_oracle_speedups(
    traces: Sequence[RequestTrace], latency: LatencyModel, lengths: Sequence[int], *, max_branches: int
) -> pd.DataFrame:
    """The columns of `oracle_speedups`, for SpecBranch whose branch point always stands at the first wrong token, with
    max_branches branches there whenever one is needed; after a miss it drafts serially or pre-verifies, whichever is
    faster over all. It reads signals, which are what tells it, and pays for that."""
    known = [clairvoyant(trace) for trace in traces]
    policies = [
        SpecBranch(
            draft_length=length,
            max_branches=max_branches,
            epsilon=0.5,
            uses_hrad=False,
            is_fixed_count=True,
            on_miss=on_miss,
            prior_length=length,
        )
        for length in lengths
        for on_miss in OnMiss
    ]
    swept = sweep(policies, known, latency)
    decode_s = swept.decode_s.sum(axis=1).reshape(len(lengths), len(OnMiss))
    best = decode_s.argmin(axis=1)
    forwards = swept.counts["num_rounds"].sum(axis=1).reshape(decode_s.shape)[np.arange(len(lengths)), best]
    base_s = sum(_autoregressive_s(trace, latency) for trace in traces)
    return pd.DataFrame(
        {
            "draft_length": list(lengths),
            "tokens_per_forward": sum(trace.num_tokens for trace in traces) / forwards,
            "speedup": base_s / decode_s.min(axis=1),
        }
    )


def clairvoyant(trace: RequestTrace) -> RequestTrace:
    """The trace with signals that tell every wrong token: what the best confidence or H-RAD could know."""
    return replace(
        trace,
        signals=tuple(DOUBTFUL if rank else SURE for rank in trace.ranks),
        tails={position: (DOUBTFUL,) * trace.tail_depth for position in trace.tails},
    )


def entropy_bound(entropies_nats: ArrayLike, log_moments: ArrayLike, num_verified: ArrayLike) -> Floats:
    """Leading term of the bound on tokens per target forward for any deterministic drafter whatever its shape:
    (m + m2) log(P) / m^2, at least 1.

    m: mean entropy of the target's laws, sum p log(1 / p), in nats; m2: mean of their second log-moments, sum p (log p)^2;
    P: tokens that one forward verifies. Pankratov and Alistarh, arXiv:2512.11718, of which the O(1) is left out: a guide
    for long drafts, not a proof for short ones. Recorded laws are those at the sampling temperature; at temperature 0,
    where the target never hesitates, the recorder notes those at 1, and nothing bounds a drafter that knows them.

    A target that chooses evenly among 8 tokens has entropy log 8 and second log-moment (log 8)^2:

    >>> h = float(np.log(8))
    >>> round(float(entropy_bound([h], [h**2], 64)), 2)
    6.16
    """
    mean, square = float(np.mean(np.asarray(entropies_nats, float))), float(np.mean(np.asarray(log_moments, float)))
    verified = np.asarray(num_verified, dtype=float)
    if not np.isfinite(mean + square):
        raise ValueError(
            "the entropy bound needs target_entropy and target_log_moment of every position; record again."
        )
    if mean <= 0:  # the target never hesitates: nothing bounds the drafter
        return np.full(verified.shape, np.inf)
    bound: Floats = np.maximum(1.0, (mean + square) * np.log(verified) / mean**2)
    return bound


def entropy_speedups(
    entropies_nats: ArrayLike,
    log_moments: ArrayLike,
    latency: LatencyModel,
    lengths: Sequence[int],
    context_tokens: int,
) -> pd.DataFrame:
    """`entropy_bound` as a speed-up: drafting costs nothing, verifying draft_length + 1 tokens what it costs. Columns
    draft_length, tokens_per_forward, speedup."""
    verified = np.asarray(lengths) + 1
    tokens = np.minimum(entropy_bound(entropies_nats, log_moments, verified), verified)  # a chain yields no more
    one_s = latency.mean_array(OpKind.VERIFY, 1, 1, context_tokens)
    gains = tokens * one_s / latency.mean_array(OpKind.VERIFY, verified, 1, context_tokens)
    return pd.DataFrame({"draft_length": lengths, "tokens_per_forward": tokens, "speedup": gains})


def _oracle_rounds(trace: RequestTrace, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Committed tokens before each round, and draft tokens in it, all accepted."""
    mismatches = next_mismatches(trace.ranks)
    starts, counts = [], []
    position = 0
    while position < trace.num_tokens:
        count = min(mismatches[position] - position, length, trace.num_tokens - position - 1)
        starts.append(position)
        counts.append(count)
        position += count + 1
    return np.array(starts), np.array(counts)


def _autoregressive_s(trace: RequestTrace, latency: LatencyModel) -> float:
    sequence = trace.num_prompt_tokens + np.arange(trace.num_tokens)
    zeros = np.zeros(len(sequence), dtype=np.int64)
    seconds = latency.mean_array(OpKind.VERIFY, 1, 1, sequence - 1) + latency.mean_array(
        OpKind.HOST, zeros, 0, sequence - 1
    )
    return float(seconds.sum())

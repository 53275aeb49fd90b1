"""Speed-of-light lines: what no draft length rule, and no drafter at all, can beat on a recorded trace.

Serial oracle: knows how many draft tokens will be accepted, drafts exactly these (at most the draft length) and
verifies. Overlap oracle: besides, every outcome was drafted for ahead of time, so that a round takes the longer of its
verification and the drafting of the next round's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.latency import LatencyModel
from sim.replay import next_mismatches
from traces.schema import RequestTrace

Floats = NDArray[np.float64]


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
            host = latency.mean_array("host", accepted, 1 if overlaps else 0, sequence - 1)
            verify = latency.mean_array("verify", accepted + 1, 1, sequence - 1)
            draft = accepted * latency.mean_array("draft", 1, 1, sequence)
            if overlaps:  # while this round is verified, the next one's tokens are drafted
                seconds += float(draft[0] + (np.maximum(verify, np.append(draft[1:], 0.0)) + host).sum())
            else:
                seconds += float((draft + verify + host).sum())
            num_rounds += len(start)
        rows.append((length, num_tokens / num_rounds, base_s / seconds))
    return pd.DataFrame(rows, columns=["draft_length", "tokens_per_forward", "speedup"])


def entropy_bound(entropies_nats: ArrayLike, num_verified: ArrayLike) -> Floats:
    """Leading term of the bound on tokens per target forward for any deterministic drafter whatever its shape:
    (m + m2) log(P) / m^2, at least 1.

    m: mean entropy of the target's laws in nats, m2: mean of the squared log-probability, P: tokens that one forward
    verifies. Pankratov and Alistarh, arXiv:2512.11718, of which the O(1) is left out. Traces hold entropies only, so
    m2 is taken from below as E[H^2], which lowers the line: a guide, not a proof, in particular where entropies are
    small.

    >>> round(float(entropy_bound([2.0, 2.0], 8)), 2)
    3.12
    """
    entropies = np.asarray(entropies_nats, dtype=float)
    mean, square = float(entropies.mean()), float((entropies**2).mean())
    verified = np.asarray(num_verified, dtype=float)
    if mean <= 0:  # the target never hesitates: nothing bounds the drafter
        return np.full(verified.shape, np.inf)
    bound: Floats = np.maximum(1.0, (mean + square) * np.log(verified) / mean**2)
    return bound


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
    seconds = latency.mean_array("verify", 1, 1, sequence - 1) + latency.mean_array("host", zeros, 0, sequence - 1)
    return float(seconds.sum())

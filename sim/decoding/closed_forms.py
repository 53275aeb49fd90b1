"""Closed forms: expected tokens, speed-ups, rollback rates and best draft lengths when acceptance is geometric.

Everywhere: each draft token is accepted independently with probability alpha, given that all before it were. Real pairs
break this (acceptance clusters), so these are the textbook baseline; replay of a trace is exact.

Symbols: alpha; gamma = draft length; cost_ratio c = target forward / draft forward; overhead = what a round costs
besides the two models. Times are in draft forwards, so cost_ratio and overhead are plain numbers, and a speed-up is
over autoregressive decoding, which takes cost_ratio a token. Scalars or arrays that broadcast; scalars in, scalar out.
Our derivations are those of a Markov renewal: tokens per cycle / time per cycle.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

Floats: TypeAlias = NDArray[np.float64]  # a NumPy scalar when all arguments are scalars


def expected_emitted_tokens(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """Tokens of a round with gamma draft tokens: (1 - alpha^(gamma + 1)) / (1 - alpha), the target's own included.

    Leviathan et al. 2023, arXiv:2211.17192, equation 1.

    >>> round(float(expected_emitted_tokens(alpha=0.8, gamma=4)), 4)
    3.3616
    """
    return _geometric_sum(alpha, np.asarray(gamma, dtype=float) + 1)


def expected_accepted_tokens(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """Accepted of gamma draft tokens: alpha (1 - alpha^gamma) / (1 - alpha).

    SpecBranch, arXiv:2506.01979, inside Theorem 1.

    >>> round(float(expected_accepted_tokens(alpha=0.8, gamma=4)), 4)
    2.3616
    """
    return (np.asarray(alpha, dtype=float) * _geometric_sum(alpha, gamma))[()]


# Serial speculation


def sps_speedup(alpha: ArrayLike, gamma: ArrayLike, cost_ratio: ArrayLike, *, overhead: ArrayLike = 0.0) -> Floats:
    """Speculative sampling: c E[emitted] / (gamma + c + overhead).

    Leviathan et al. 2023, arXiv:2211.17192, Theorem 3.8 (there c is our 1 / cost_ratio). Assumes that verifying
    gamma + 1 tokens takes as long as one.

    >>> round(float(sps_speedup(alpha=0.7, gamma=4, cost_ratio=8)), 2)
    1.85
    """
    gamma, cost_ratio, overhead = _floats(gamma, cost_ratio, overhead)
    speedup: Floats = cost_ratio * expected_emitted_tokens(alpha, gamma) / (gamma + cost_ratio + overhead)
    return speedup[()]


def sps_rollback_rate(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """Submitted draft tokens that are not accepted: 1 - E[accepted] / gamma.

    Derived from the definition of arXiv:2506.01979 (rollback tokens / submitted draft tokens).

    >>> round(float(sps_rollback_rate(alpha=0.65, gamma=8)), 3)
    0.775
    """
    rate: Floats = 1 - expected_accepted_tokens(alpha, gamma) / np.asarray(gamma, dtype=float)
    return rate[()]


def best_sps_draft_length(
    alpha: ArrayLike, cost_ratio: ArrayLike, *, overhead: ArrayLike = 0.0, longest: int = 64
) -> NDArray[np.int64]:
    """The gamma in 1..longest with the largest `sps_speedup`; the shortest of equals.

    >>> int(best_sps_draft_length(alpha=0.9, cost_ratio=8))
    9
    """
    gammas = np.arange(1, longest + 1)
    alpha, cost_ratio, overhead = (value[..., None] for value in _floats(alpha, cost_ratio, overhead))
    best: NDArray[np.int64] = 1 + np.argmax(sps_speedup(alpha, gammas, cost_ratio, overhead=overhead), axis=-1)
    return best[()]


# One window drafted ahead (PEARL, SpecBranch)


def ideal_parallel_speedup(gamma: ArrayLike, cost_ratio: ArrayLike) -> Floats:
    """Drafting during verification when nothing is ever rejected: c gamma / max(gamma, c). arXiv:2506.01979, section 4.

    The bonus token is not counted.

    >>> float(ideal_parallel_speedup(gamma=6, cost_ratio=6))
    6.0
    """
    gamma, cost_ratio = _floats(gamma, cost_ratio)
    return (cost_ratio * gamma / np.maximum(gamma, cost_ratio))[()]


def ideal_sps_speedup(gamma: ArrayLike, cost_ratio: ArrayLike) -> Floats:
    """Serial speculation when nothing is ever rejected, the bonus token not counted: c gamma / (gamma + c).

    >>> float(ideal_sps_speedup(gamma=6, cost_ratio=6))
    3.0
    """
    gamma, cost_ratio = _floats(gamma, cost_ratio)
    return (cost_ratio * gamma / (gamma + cost_ratio))[()]


def parallel_speedup_theorem1(alpha: ArrayLike, gamma: ArrayLike, cost_ratio: ArrayLike) -> Floats:
    """Parallel speculation with rollback as published: c (1 + alpha^gamma) E[accepted] / (2 max(gamma, c)).

    SpecBranch, arXiv:2506.01979, Theorem 1. It looks at two steps, the second of which succeeds with alpha^gamma, and
    counts no correction token: against the exact chain (`parallel_speedup_renewal`, no correction) it is too large by
    up to 9/8, and at small alpha it falls below what any such method can do.

    >>> round(float(parallel_speedup_theorem1(alpha=0.7, gamma=4, cost_ratio=4)), 2)
    1.1
    """
    alpha, gamma, cost_ratio = _floats(alpha, gamma, cost_ratio)
    tokens_of_two_steps = (1 + alpha**gamma) * expected_accepted_tokens(alpha, gamma)
    speedup: Floats = cost_ratio * tokens_of_two_steps / (2 * np.maximum(gamma, cost_ratio))
    return speedup[()]


def parallel_speedup_renewal(
    alpha: ArrayLike, gamma: ArrayLike, cost_ratio: ArrayLike, *, overhead: ArrayLike = 0.0, correction: bool = True
) -> Floats:
    """The machine of Theorem 1 as the Markov chain it is: verifying steps V and steps D that only draft again.

    V -> V with alpha^gamma, else D; D -> V. Hence a share 1 / (2 - alpha^gamma) of the steps verifies, each with
    E[accepted] tokens, or with (1 - alpha^gamma) / (1 - alpha) when the correction token is emitted, too.

    >>> round(float(parallel_speedup_renewal(alpha=0.7, gamma=4, cost_ratio=4)), 3)
    1.439
    """
    alpha, gamma, cost_ratio, overhead = _floats(alpha, gamma, cost_ratio, overhead)
    tokens = _geometric_sum(alpha, gamma) if correction else expected_accepted_tokens(alpha, gamma)
    step = np.maximum(gamma, cost_ratio) + overhead
    return (cost_ratio * tokens / ((2 - alpha**gamma) * step))[()]


def pearl_tokens_per_step(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """PEARL's tokens a target forward: (1 - alpha^gamma) / ((1 - alpha) (1 + alpha - alpha^gamma)).

    PEARL: Liu et al. 2024, arXiv:2408.11850; the formula is ours. A pre-verify step emits 1 token and leads to a
    post-verify step with alpha; that emits (1 - alpha^gamma) / (1 - alpha) and is followed by another with alpha^gamma.

    >>> round(float(pearl_tokens_per_step(alpha=0.8, gamma=5)), 3)
    2.283
    """
    alpha, gamma = _floats(alpha, gamma)
    return (_geometric_sum(alpha, gamma) / (1 + alpha - alpha**gamma))[()]


def pearl_speedup(alpha: ArrayLike, gamma: ArrayLike, cost_ratio: ArrayLike, *, overhead: ArrayLike = 0.0) -> Floats:
    """PEARL: c `pearl_tokens_per_step` / (max(gamma, c) + overhead).

    >>> round(float(pearl_speedup(alpha=0.7, gamma=8, cost_ratio=8)), 2)
    1.91
    """
    gamma, cost_ratio, overhead = _floats(gamma, cost_ratio, overhead)
    return (cost_ratio * pearl_tokens_per_step(alpha, gamma) / (np.maximum(gamma, cost_ratio) + overhead))[()]


def pearl_rollback_rate(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """Drafted tokens that are never emitted under PEARL; a step drafts gamma.

    1 - (v E[accepted] + (1 - v) alpha) / gamma with v = alpha / (1 + alpha - alpha^gamma), the share of post-verify
    steps. Our derivation, from the chain of `pearl_tokens_per_step`.

    >>> round(float(pearl_rollback_rate(alpha=0.65, gamma=8)), 2)
    0.86
    """
    alpha, gamma = _floats(alpha, gamma)
    share = alpha / (1 + alpha - alpha**gamma)
    return (1 - (share * expected_accepted_tokens(alpha, gamma) + (1 - share) * alpha) / gamma)[()]


def branch_hit_probability(alpha: ArrayLike, rescue_rate: ArrayLike) -> Floats:
    """The target's token is among k branches: alpha + (1 - alpha) rescue_rate, ranks 2 to k rescuing a rejection.

    >>> round(float(branch_hit_probability(alpha=0.7, rescue_rate=0.4)), 2)
    0.82
    """
    alpha, rescue_rate = _floats(alpha, rescue_rate)
    return (alpha + (1 - alpha) * rescue_rate)[()]


def specbranch_serial_speedup(
    alpha: ArrayLike,
    num_pending: ArrayLike,
    hit_probability: ArrayLike,
    cost_ratio: ArrayLike,
    *,
    serial_length: ArrayLike | None = None,
    step_slowdown: ArrayLike = 1.0,
    overhead: ArrayLike = 0.0,
) -> Floats:
    """SpecBranch with a fixed branch point that drafts serially after a miss, the target idle.

    A branch stage verifies num_pending = L tokens while L + 1 forwards of the branches run, each `step_slowdown` times
    a plain one; it emits (1 - alpha^(L + 1)) / (1 - alpha) and survives with Q = alpha^L hit_probability. A miss costs
    `serial_length` further forwards (L by default: the branch point's law is then part of the branch stage).
    Method: arXiv:2506.01979; the formula is ours.

    >>> round(float(specbranch_serial_speedup(alpha=0.9, num_pending=7, hit_probability=0.95, cost_ratio=8)), 2)
    3.85
    """
    alpha, num_pending, hit, cost_ratio = _floats(alpha, num_pending, hit_probability, cost_ratio)
    serial, slowdown, extra = _floats(num_pending if serial_length is None else serial_length, step_slowdown, overhead)
    survives = alpha**num_pending * hit
    stage = np.maximum((num_pending + 1) * slowdown, cost_ratio) + extra
    return (cost_ratio * expected_emitted_tokens(alpha, num_pending) / (stage + (1 - survives) * serial))[()]


def specbranch_preverify_tokens_per_step(
    alpha: ArrayLike, num_pending: ArrayLike, hit_probability: ArrayLike
) -> Floats:
    """SpecBranch with a fixed branch point that overlaps after a miss, too: the first token is pre-verified.

    Stages D (emits 1, -> B with h) and B (emits (1 - alpha^(L + 1)) / (1 - alpha), stays with Q = alpha^L h): tokens a
    step are ((1 - Q) + h E) / (h + 1 - Q). PEARL is h = alpha, L = gamma - 1. Method: arXiv:2506.01979; formula ours.

    >>> round(float(specbranch_preverify_tokens_per_step(alpha=0.7, num_pending=7, hit_probability=0.82)), 2)
    2.0
    """
    alpha, num_pending, hit = _floats(alpha, num_pending, hit_probability)
    leaves = 1 - alpha**num_pending * hit
    # At alpha = h = 1 with nothing ever leaving B, the limit is that of B alone; the formula gives it, for h > 0.
    return ((leaves + hit * expected_emitted_tokens(alpha, num_pending)) / (hit + leaves))[()]


def specbranch_preverify_speedup(
    alpha: ArrayLike,
    num_pending: ArrayLike,
    hit_probability: ArrayLike,
    cost_ratio: ArrayLike,
    *,
    step_slowdown: ArrayLike = 1.0,
    overhead: ArrayLike = 0.0,
) -> Floats:
    """`specbranch_preverify_tokens_per_step` against a step of max((L + 1) step_slowdown, c) + overhead.

    >>> s = specbranch_preverify_speedup(alpha=0.9, num_pending=7, hit_probability=0.94, cost_ratio=8)
    >>> round(float(s), 2)
    3.96
    """
    num_pending, cost_ratio, slowdown, overhead = _floats(num_pending, cost_ratio, step_slowdown, overhead)
    step = np.maximum((num_pending + 1) * slowdown, cost_ratio) + overhead
    return (cost_ratio * specbranch_preverify_tokens_per_step(alpha, num_pending, hit_probability) / step)[()]


def draft_length_cap(cost_ratio: ArrayLike, step_slowdown: ArrayLike = 1.0) -> NDArray[np.int64]:
    """The longest window that hides behind a target forward: floor(c / step_slowdown).

    step_slowdown: a draft forward that carries the branches / a plain one. With overlap, windows below c do not shorten
    the step, so under geometric acceptance the cap is also the best length.

    >>> int(draft_length_cap(cost_ratio=8, step_slowdown=1.2))
    6
    """
    cost_ratio, step_slowdown = _floats(cost_ratio, step_slowdown)
    return np.floor(cost_ratio / step_slowdown).astype(np.int64)[()]


# Every outcome hedged (SSD), several targets (DSI)


def outcome_cache_speedup(
    alpha: ArrayLike,
    gamma: ArrayLike,
    hit_rate: ArrayLike,
    cost_ratio: ArrayLike,
    *,
    step_slowdown: ArrayLike = 1.0,
    overhead: ArrayLike = 0.0,
) -> Floats:
    """Hedging outcomes at every number of accepted tokens: c E[emitted] / (max(gamma slowdown, c) + (1 - hit) gamma).

    hit_rate: chance that the actual outcome was drafted ahead; 1 bounds every method with one chain to verify.
    A miss drafts gamma tokens serially. Method: SSD, arXiv:2603.03251; the formula is ours.

    >>> round(float(outcome_cache_speedup(alpha=0.8, gamma=8, hit_rate=0.9, cost_ratio=8)), 2)
    3.94
    """
    gamma, hit_rate, cost_ratio, slowdown, overhead = _floats(gamma, hit_rate, cost_ratio, step_slowdown, overhead)
    round_time = np.maximum(gamma * slowdown, cost_ratio) + overhead + (1 - hit_rate) * gamma
    return (cost_ratio * expected_emitted_tokens(alpha, gamma) / round_time)[()]


def ssd_speedup(
    hit_rate: ArrayLike, tokens_on_hit: ArrayLike, tokens_on_miss: ArrayLike, primary: ArrayLike, backup: ArrayLike
) -> Floats:
    """SSD as published: tokens a round over time a round, both averaged over hits and misses.

    primary, backup: time of the speculator ahead of the outcome and of the one after a miss, in TARGET forwards.
    arXiv:2603.03251, Theorem 7.

    >>> round(float(ssd_speedup(0.9, tokens_on_hit=4.0, tokens_on_miss=3.0, primary=0.8, backup=0.5)), 3)
    3.714
    """
    hit, on_hit, on_miss, primary, backup = _floats(hit_rate, tokens_on_hit, tokens_on_miss, primary, backup)
    tokens = hit * on_hit + (1 - hit) * on_miss
    return (tokens / (hit * np.maximum(1, primary) + (1 - hit) * (1 + backup)))[()]


def geometric_fanout(alpha: float, num_pending: int, budget: float, *, miss_exponent: float = 1.0) -> Floats:
    """Branches for 0..num_pending accepted tokens under a budget, as real numbers: F_n ~ alpha^(n / (1 + r)).

    The last one carries the factor (1 - alpha)^(-1 / (1 + r)), since no rejection has to happen there. r =
    miss_exponent is that of the power law of misses over the fan-out. arXiv:2603.03251, geometric fan-out; alpha < 1.

    >>> [round(float(f), 2) for f in geometric_fanout(alpha=0.8, num_pending=3, budget=12)]
    [2.79, 2.5, 2.24, 4.47]
    """
    power = 1 / (1 + miss_exponent)
    shares: Floats = np.power(alpha, np.arange(num_pending + 1) * power, dtype=np.float64)
    shares[-1] *= (1 - alpha) ** -power
    fanout: Floats = budget * shares / shares.sum()
    return fanout


def dsi_speedup(
    alpha: ArrayLike, lookahead: ArrayLike, cost_ratio: ArrayLike, *, has_plain_server: bool = False
) -> Floats:
    """Distributed speculative inference with enough target servers (`dsi_servers`); never below 1.

    Between two rejections lie 1 / (1 - alpha) tokens; the drafter never waits, so they cost one target forward plus
    k / c for each of the 1 / (1 - alpha^k) blocks of k = lookahead tokens: S = (1 / (1 - alpha)) / (1 + (k / c) /
    (1 - alpha^k)). With a server that decodes without speculation a wrong first token, which comes with 1 - alpha, is
    found after one forward instead of k / c more; exact for k <= c, when that server never gets further ahead.
    DSI: arXiv:2405.14105; the formula is ours, from the cost model of its published simulator.

    >>> round(float(dsi_speedup(alpha=0.9, lookahead=5, cost_ratio=10)), 2)
    4.5
    """
    alpha, lookahead, cost_ratio = _floats(alpha, lookahead, cost_ratio)
    block = lookahead / cost_ratio
    # Multiplied through by 1 - alpha, so that alpha = 1 is the drafter's own speed, c.
    time = (1 - alpha) + block / _geometric_sum(alpha, lookahead)
    if has_plain_server:
        time = time - (1 - alpha) ** 2 * block
    return np.maximum(1.0, 1 / time)[()]


def dsi_servers(lookahead: ArrayLike, cost_ratio: ArrayLike) -> NDArray[np.int64]:
    """Target servers that verify blocks as fast as they are drafted: ceil(c / lookahead). arXiv:2405.14105.

    >>> int(dsi_servers(lookahead=5, cost_ratio=12))
    3
    """
    lookahead, cost_ratio = _floats(lookahead, cost_ratio)
    return np.ceil(cost_ratio / lookahead).astype(np.int64)[()]


def _geometric_sum(alpha: ArrayLike, num_terms: ArrayLike) -> Floats:
    """1 + alpha + ... + alpha^(num_terms - 1), without cancellation near alpha = 1."""
    alpha, num_terms = np.broadcast_arrays(*_floats(alpha, num_terms))
    is_one = alpha == 1
    below = np.where(is_one, 0.5, alpha)
    return np.where(is_one, num_terms, -np.expm1(xlogy(num_terms, below)) / (1 - below))[()]


def _floats(*values: ArrayLike) -> tuple[Floats, ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)

"""Break-even maps: which method wins where, over cost ratio and acceptance, in closed form or simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.papers.bounds import oracle_speedups
from sim.decoding.acceptance_models import AcceptanceModel, Geometric, sample_requests
from sim.decoding.closed_forms import (
    branch_hit_probability,
    dsi_servers,
    outcome_cache_speedup,
    pearl_speedup,
    specbranch_serial_speedup,
    sps_speedup,
)
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.dsi import Dsi, simulate_dsi
from sim.latency.constant import ConstantLatency
from sim.latency.placement import Placement
from sim.sweep.sweep import sweep
from sim.sweep.timer import RoundTimer

Floats = NDArray[np.float64]
LONGEST = 16
MAX_VERIFIERS = 7  # target servers in DSI's published simulations
ORACLE_LENGTHS = (2, 4, 8, 16)
RESCUE_RATE = 0.5  # of a rejected token by 3 further branches; the geometric rank law with decay 0.8 gives 0.49
CLOSED_FORMS: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "fixed_length": lambda alpha, gamma, ratio: sps_speedup(alpha, gamma, ratio),
    "pearl": lambda alpha, gamma, ratio: pearl_speedup(alpha, gamma, ratio),
    "specbranch": lambda alpha, gamma, ratio: specbranch_serial_speedup(
        alpha, gamma, branch_hit_probability(alpha, RESCUE_RATE), ratio
    ),
    "saguaro": lambda alpha, gamma, ratio: outcome_cache_speedup(
        alpha, gamma, branch_hit_probability(alpha, RESCUE_RATE), ratio
    ),
}


def closed_form_map(
    alphas: Sequence[float], cost_ratios: Sequence[float], methods: Sequence[str] = tuple(CLOSED_FORMS)
) -> pd.DataFrame:
    """Columns alpha, cost_ratio, method, setting (its best draft length), speedup. Acceptance is geometric; branches
    cost nothing and rescue half of the rejections."""
    grid_alphas, grid_ratios = np.meshgrid(np.asarray(alphas, float), np.asarray(cost_ratios, float), indexing="ij")
    lengths = np.arange(1, LONGEST + 1, dtype=float)
    frames = [_flat(grid_alphas, grid_ratios, "autoregressive", np.zeros_like(grid_alphas), np.ones_like(grid_alphas))]
    for method in methods:
        gains = CLOSED_FORMS[method](grid_alphas[..., None], lengths, grid_ratios[..., None])
        best = np.argmax(gains, axis=-1)
        speedup = np.take_along_axis(gains, best[..., None], axis=-1)[..., 0]
        frames.append(_flat(grid_alphas, grid_ratios, method, lengths[best], speedup))
    return pd.concat(frames, ignore_index=True)


def oracle_map(alphas: Sequence[float], cost_ratios: Sequence[float]) -> pd.DataFrame:
    """Columns alpha, cost_ratio, speedup: what no chain of drafts can beat under geometric acceptance.

    Every outcome was drafted for ahead of time at no cost but the tokens that will be accepted, A of them up to the best
    draft length L: E[min(A, L) + 1] / E[max(1, min(A, L) / c)], P(A >= k) = alpha^k (the overlap oracle
    of `analysis.papers.bounds`).
    """
    grid_alphas, grid_ratios = np.meshgrid(np.asarray(alphas, float), np.asarray(cost_ratios, float), indexing="ij")
    best = np.ones_like(grid_alphas)
    for longest in range(1, LONGEST + 1):
        counts = np.arange(longest + 1)
        law = grid_alphas[..., None] ** counts * np.where(counts < longest, 1 - grid_alphas[..., None], 1.0)
        rounds = (law * np.maximum(1.0, counts / grid_ratios[..., None])).sum(axis=-1)
        best = np.maximum(best, (law * (counts + 1)).sum(axis=-1) / rounds)
    return pd.DataFrame({"alpha": grid_alphas.ravel(), "cost_ratio": grid_ratios.ravel(), "speedup": best.ravel()})


def simulated_map(
    policies: Sequence[Policy],
    alphas: Sequence[float],
    cost_ratios: Sequence[float],
    *,
    model_of: Callable[[float], AcceptanceModel] | None = None,
    placement: Placement | None = None,
    branch_cost: float = 0.0,
    num_requests: int = 20,
    num_tokens: int = 200,
    seed: int = 0,
    with_bound: bool = False,
) -> pd.DataFrame:
    """The same columns from replay; setting is the label of each method's best policy. Every policy and cost ratio sees
    the same sampled requests. model_of: from a mean acceptance to a model, geometric by default. with_bound: a further
    column bound, the overlap oracle's speed-up on the same requests."""
    model_of = model_of or (lambda alpha: Geometric(alpha=alpha))
    placement = placement or Placement()
    methods = np.array([label_of(policy).partition(":")[0] for policy in policies])
    labels = np.array([label_of(policy) for policy in policies])
    rows = []
    for alpha in alphas:
        traces = sample_requests(model_of(alpha), num_requests, num_tokens, seed=seed)
        swept = sweep(policies, traces, ConstantLatency(draft_s=0.1, verify_s=1.0), record_rounds=True)
        assert swept.rounds is not None
        policy, request = swept.rounds.lane // num_requests, swept.rounds.lane % num_requests
        position = swept.rounds.position - request * (num_tokens + 1)
        for ratio in cost_ratios:
            latency = ConstantLatency(draft_s=1 / ratio, verify_s=1.0, branch_s=branch_cost / ratio)
            timer = RoundTimer(latency, traces, interference=placement.shared)
            seconds = timer.times_of(swept.rounds, request, position)[0]
            speedups = num_requests * num_tokens / np.bincount(policy, weights=seconds)
            oracle = oracle_speedups(traces, latency, ORACLE_LENGTHS, overlaps=True) if with_bound else None
            for method in dict.fromkeys(methods.tolist()):
                chosen = np.flatnonzero(methods == method)
                best = chosen[int(np.argmax(speedups[chosen]))]
                row = {"alpha": alpha, "cost_ratio": ratio, "method": method, "setting": labels[best]}
                row["speedup"] = float(speedups[best])
                rows.append(row if oracle is None else {**row, "bound": float(oracle.speedup.max())})
    return pd.DataFrame(rows)


def with_reductions(table: pd.DataFrame) -> pd.DataFrame:
    """A map in which outcome hedging is at least as fast as what it contains, under the label of the reduction: the rounds
    are the very same, so that they need not be run twice."""
    best: dict[tuple[float, float], tuple[float, str]] = {}
    for alpha, ratio, _, setting, speedup in table.itertuples(index=False, name=None):
        reduced = as_outcome_hedging(parse_policy(setting))
        if reduced is not None:
            best[alpha, ratio] = max(best.get((alpha, ratio), (0.0, "")), (speedup, label_of(reduced)))
    rows = []
    for alpha, ratio, method, setting, speedup in table.itertuples(index=False, name=None):
        contained = best.get((alpha, ratio), (0.0, ""))
        if method == "outcome_hedging" and contained[0] > speedup:
            rows.append((alpha, ratio, method, contained[1], contained[0]))
        else:
            rows.append((alpha, ratio, method, setting, speedup))
    return pd.DataFrame(rows, columns=table.columns)


def dsi_map(
    alphas: Sequence[float], cost_ratios: Sequence[float], *, num_requests: int, num_tokens: int, seed: int = 0
) -> pd.DataFrame:
    """Rows of such a map for DSI: the shortest lookahead that MAX_VERIFIERS target servers can follow,
    and one more server that decodes plainly."""
    rows = []
    for alpha in alphas:
        traces = sample_requests(Geometric(alpha=alpha), num_requests, num_tokens, seed=seed)
        for ratio in cost_ratios:
            lookahead = max(1, int(np.ceil(ratio / MAX_VERIFIERS)))
            settings = Dsi(lookahead, 1 + int(dsi_servers(lookahead, ratio)))
            run = simulate_dsi(settings, traces, ConstantLatency(draft_s=1 / ratio, verify_s=1.0))
            label = f"dsi:lookahead={settings.lookahead},num_servers={settings.num_servers}"
            rows.append((alpha, ratio, "dsi", label, run.tokens_per_s))
    return pd.DataFrame(rows, columns=["alpha", "cost_ratio", "method", "setting", "speedup"])


def winners(table: pd.DataFrame, margin: float = 0.0) -> pd.DataFrame:
    """The fastest method of each cell, with its gain over the second; autoregressive when nothing gains more than
    margin.
    """
    ordered = table.sort_values("speedup", ascending=False, kind="stable")
    first = ordered.groupby(["alpha", "cost_ratio"], sort=True).nth(0).set_index(["alpha", "cost_ratio"])
    second = ordered.groupby(["alpha", "cost_ratio"], sort=True).nth(1).set_index(["alpha", "cost_ratio"])
    won = first.assign(gain=first.speedup / second.speedup - 1).sort_index().reset_index()
    hopeless = won.speedup <= 1 + margin
    won.loc[hopeless, "method"] = "autoregressive"
    won.loc[hopeless, "speedup"] = 1.0
    return won


def _flat(alphas: Floats, ratios: Floats, method: str, setting: Floats, speedup: Floats) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "alpha": alphas.ravel(),
            "cost_ratio": ratios.ravel(),
            "method": method,
            "setting": [f"draft_length={value:g}" for value in setting.ravel()],
            "speedup": speedup.ravel(),
        }
    )

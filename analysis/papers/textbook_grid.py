"""Candidates for every method where a speed ratio and a constant acceptance are all that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sim.decoding.acceptance_models import Geometric
from sim.decoding.closed_forms import dsi_servers
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.reductions import as_outcome_hedging
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.dsi import Dsi, simulate_dsi
from sim.latency.constant import ConstantLatency

MAX_BRANCHES = 4  # of SpecBranch; the published code has 3
LONGEST = 16
MOST_VERIFIERS = 7  # target servers in DSI's published simulations


def textbook_policies(alpha: float, cost_ratios: Sequence[float]) -> list[Policy]:
    """Every method but DSI, at draft lengths around each speed ratio. Rules that stop by confidence are left out: with a
    constant acceptance no token is surer than another, and they draft a fixed length."""
    reaches = sorted({max(1, round(ratio)) for ratio in cost_ratios})
    windows = sorted({min(LONGEST, max(1, reach + more)) for reach in reaches for more in (-2, -1, 0)})
    acceptance = f"{min(max(alpha, 0.01), 0.99):.3f}"
    labels = [
        f"specbranch:draft_length={length},max_branches={MAX_BRANCHES},epsilon=0,uses_hrad=false,is_fixed_count=true,{rest}"
        for length in windows
        for rest in ("on_miss=overlap", *(f"prior_length={prior}" for prior in (1, 3, length)))
    ]
    labels += [
        f"saguaro:draft_length={length},fan_out=3,acceptance={acceptance}"
        for length in range(1, min(LONGEST, reaches[-1]) + 1)
    ]
    policies: list[Policy] = [
        Autoregressive(),
        *map(FixedLength, range(1, LONGEST + 1)),
        *(Pearl(min(LONGEST, reach)) for reach in reaches),
        *map(parse_policy, labels),
    ]
    odds = np.log(float(acceptance) / (1 - float(acceptance)))
    ours = [
        parse_policy(
            f"outcome_hedging:intercept={odds:.4f},slope=0,least_reach=0,rank_decay=0.5,draft_length={length},"
            f"max_branches={branches},serial_length={serial}"
        )
        for length in sorted({min(LONGEST, max(1, reach - 1)) for reach in reaches})
        for branches in (8, 24)
        for serial in (0, 3)
    ]
    return list({label_of(policy): policy for policy in [*policies, *ours]}.values())


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
    """Rows of `analysis.papers.maps` for DSI: the shortest lookahead that MOST_VERIFIERS target servers can follow,
    and one more server that decodes plainly."""
    rows = []
    for alpha in alphas:
        rngs = np.random.default_rng(seed).spawn(num_requests)
        traces = [Geometric(alpha=alpha).sample(num_tokens, index, rng) for index, rng in enumerate(rngs)]
        for ratio in cost_ratios:
            lookahead = max(1, int(np.ceil(ratio / MOST_VERIFIERS)))
            settings = Dsi(lookahead, 1 + int(dsi_servers(lookahead, ratio)))
            run = simulate_dsi(settings, traces, ConstantLatency(draft_s=1 / ratio, verify_s=1.0))
            label = f"dsi:lookahead={settings.lookahead},num_servers={settings.num_servers}"
            rows.append((alpha, ratio, "dsi", label, run.tokens_per_s))
    return pd.DataFrame(rows, columns=["alpha", "cost_ratio", "method", "setting", "speedup"])

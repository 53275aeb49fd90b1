"""How fast each policy ran, with its uncertainty: a function of a run's requests and rounds.

Speed is decode tokens a second: all output tokens over all seconds from the end of the prefill to the last token. Intervals
and speed-ups come from a bootstrap over prompts, the same resampled prompts for every policy (prompts differ far more than
repeats do, and policies are compared on the same ones).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured speed of one policy at one temperature.

    tokens_per_s, with a 95% interval; speedup over the baseline policy on the same prompts, None without a baseline.
    num_requests counts repeats; num_unclean of them ran beside other load.
    """

    policy: str
    temperature: float
    tokens_per_s: float
    interval: tuple[float, float]
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    num_prompts: int
    num_requests: int
    num_unclean: int
    tokens_per_target_forward: float


def request_seconds(requests: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """One row a request: policy, temperature, prompt_id, repeat, tokens, decode seconds, rounds, is_clean."""
    if requests.empty or rounds.empty:
        raise ValueError("no rounds to measure: the run holds no finished request.")
    spans = rounds.groupby("request_id").agg(
        start_s=("start_s", "min"), end_s=("end_s", "max"), num_rounds=("round", "size")
    )
    table = requests.set_index("request_id").join(spans, how="inner").reset_index()
    table["decode_s"] = table.end_s - table.start_s
    table["tokens"] = table.num_output_tokens
    return table[
        ["request_id", "policy", "temperature", "prompt_id", "repeat", "tokens", "decode_s", "num_rounds", "is_clean"]
    ]


def measured_speeds(
    requests: pd.DataFrame, rounds: pd.DataFrame, *, baseline: str = "autoregressive", seed: int = 0
) -> list[Speed]:
    """Speeds of every policy and temperature of a run, in order of appearance. Repeats of a prompt enter by their median."""
    table = request_seconds(requests, rounds)
    speeds = []
    for temperature, cell in table.groupby("temperature", sort=True):
        grids = {str(policy): _by_prompt(rows) for policy, rows in cell.groupby("policy", sort=False)}
        prompts = sorted(set.union(*(set(grid.index) for grid in grids.values())))
        weights = pd.DataFrame(resampling_weights(len(prompts), seed=seed), columns=prompts)
        base = grids.get(baseline)
        for policy, grid in grids.items():
            rows = cell[cell.policy == policy]
            rate, resampled = _rates(grid, weights)
            gain, gain_interval = None, None
            shared = grid.index.intersection(base.index) if base is not None else grid.index[:0]
            if base is not None and len(shared):
                (own, own_resampled), (plain, plain_resampled) = (
                    _rates(each.loc[shared], weights) for each in (grid, base)
                )
                gain, gain_interval = own / plain, interval_of(own_resampled / plain_resampled)
            speeds.append(
                Speed(
                    policy=policy,
                    temperature=float(str(temperature)),
                    tokens_per_s=rate,
                    interval=interval_of(resampled),
                    speedup=gain,
                    speedup_interval=gain_interval,
                    num_prompts=len(grid),
                    num_requests=len(rows),
                    num_unclean=int((~rows.is_clean.astype(bool)).sum()),
                    tokens_per_target_forward=float(rows.tokens.sum() / rows.num_rounds.sum()),
                )
            )
    return speeds


def resampling_weights(num: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """Bootstrap weights (num_resamples, num): how often each prompt is drawn; the same for every policy."""
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(float)


def interval_of(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Central interval of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mismatched_prompts(requests: pd.DataFrame) -> list[str]:
    """Prompts on which two policies (or repeats) gave different tokens at one temperature; empty when lossless."""
    counts = requests.groupby(["prompt_id", "temperature", "seed", "max_new_tokens"]).tokens_sha256.nunique()
    return [str(key[0]) for key in counts[counts > 1].index]


def _by_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """Tokens and median decode seconds of each prompt."""
    return rows.groupby("prompt_id").agg(tokens=("tokens", "median"), decode_s=("decode_s", "median"))


def _rates(grid: pd.DataFrame, weights: pd.DataFrame) -> tuple[float, NDArray[np.float64]]:
    """Tokens a second, and its resampled values (those in which any of the prompts was drawn)."""
    tokens, seconds = grid.tokens.to_numpy(float), grid.decode_s.to_numpy(float)
    drawn = weights[list(grid.index)].to_numpy()
    total = drawn @ seconds
    rates = np.divide(drawn @ tokens, total, out=np.full(len(total), tokens.sum() / seconds.sum()), where=total > 0)
    return float(tokens.sum() / seconds.sum()), rates


def speeds_summary(speeds: Sequence[Speed]) -> list[Mapping[str, object]]:
    """Speeds as plain values for summary.json."""
    return [dict(vars(speed)) for speed in speeds]

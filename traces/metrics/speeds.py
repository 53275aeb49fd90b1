"""How fast each policy ran, with its uncertainty: the one estimator of measured, simulated and explored speeds.

The speed of a policy is its decode tokens a second over a set of prompts, a ratio of sums:

    speed = sum over prompts of tokens(prompt) / sum over prompts of seconds(prompt)

where seconds run from the end of the prefill to the last token. A prompt that was decoded to several sequences (other noise)
counts with the sum of them. A prompt that was decoded again, to the same sequences (`repeat`), counts with the median of its
repeats, of tokens and of seconds: repeats differ by disturbances of the machine alone, and these only ever make a run longer.
So a simulation, which repeats nothing, is a plain ratio of sums.

Intervals and speed-ups come from a bootstrap over prompts (`traces.metrics.bootstrap`): all sequences and repeats of a prompt
are drawn together, and the same prompts for every policy.

Two estimators stood here before: measured and predicted runs took the median of all requests of a prompt, explorations their
sum. Either is kept where it was right. A median over different sequences was not, since it pairs the tokens of one with the
seconds of another; nor would a sum over repeats be, in which one disturbed repeat weighs as much as the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from traces.metrics.bootstrap import Estimates, Floats, ratio_of_sums, resampling_weights


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


def doubt_of(num_unclean: int, num_requests: int) -> str:
    """What to say beside times of requests of which some ran beside other load; empty where none did."""
    if not num_unclean:
        return ""
    return f"{num_unclean} of {num_requests} requests ran beside other load: their times support no claim"


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
    """Speeds of every policy and temperature of a run, in order of appearance.

    requests, rounds: the tables of a run folder, or of a simulation (`analysis.check.predict.frames_of`). seed: of the
    bootstrap. Policies may have run on different prompts; a speed-up is over those that the baseline ran on as well.
    Raises ValueError when no request has rounds.
    """
    table = request_seconds(requests, rounds)
    speeds = []
    for temperature, cell in table.groupby("temperature", sort=True):
        grids = {str(policy): _by_prompt(rows) for policy, rows in cell.groupby("policy", sort=False)}
        prompts = sorted(set.union(*(set(grid.index) for grid in grids.values())))
        weights = pd.DataFrame(resampling_weights(len(prompts), seed=seed), columns=prompts)
        base = grids.get(baseline, cell.iloc[:0])
        for policy, grid in grids.items():
            rows = cell[cell.policy == policy]
            shared = grid.index.intersection(base.index)
            gains = _rates(grid.loc[shared], weights).over(_rates(base.loc[shared], weights)) if len(shared) else None
            speeds += speeds_of(
                [policy],
                _rates(grid, weights),
                gains,
                temperature=float(str(temperature)),
                num_prompts=len(grid),
                num_requests=len(rows),
                num_unclean=int((~rows.is_clean.astype(bool)).sum()),
                tokens_per_target_forward=np.array([rows.tokens.sum() / rows.num_rounds.sum()]),
            )
    return speeds


def speeds_of(
    policies: Sequence[str],
    rates: Estimates,
    gains: Estimates | None,
    *,
    temperature: float,
    num_prompts: int,
    num_requests: int,
    num_unclean: int,
    tokens_per_target_forward: Floats,
) -> list[Speed]:
    """Estimates as records. rates, gains (over the baseline; None without one), tokens_per_target_forward: of each policy."""
    no_gains = ([None] * len(policies),) * 2
    speedups = (gains.values.tolist(), gains.intervals()) if gains else no_gains
    values = zip(
        policies, rates.values.tolist(), rates.intervals(), *speedups, tokens_per_target_forward.tolist(), strict=True
    )
    return [
        Speed(
            policy=policy,
            temperature=temperature,
            tokens_per_s=rate,
            interval=interval,
            speedup=speedup,
            speedup_interval=speedup_interval,
            num_prompts=num_prompts,
            num_requests=num_requests,
            num_unclean=num_unclean,
            tokens_per_target_forward=per_forward,
        )
        for policy, rate, interval, speedup, speedup_interval, per_forward in values
    ]


def mismatched_prompts(requests: pd.DataFrame) -> list[str]:
    """Prompts on which two policies (or repeats) gave different tokens at one temperature; empty when lossless."""
    counts = requests.groupby(["prompt_id", "temperature", "seed", "max_new_tokens"]).tokens_sha256.nunique()
    return [str(key[0]) for key in counts[counts > 1].index]


def same_policy_difference(
    requests: pd.DataFrame, rounds: pd.DataFrame, *, policy: str = "autoregressive"
) -> float | None:
    """How far two measurements of one policy, taken in turns, are apart: |ratio of speeds - 1|, the largest of the
    temperatures. The two are its even and its odd repeats, on the same prompts; None where it has not both."""
    table = request_seconds(requests, rounds)
    table = table[table.policy == policy]
    differences = []
    for _, cell in table.assign(half=table.repeat % 2).groupby("temperature"):
        first, second = (cell[cell.half == half].groupby("prompt_id")[["tokens", "decode_s"]].mean() for half in (0, 1))
        shared = first.index.intersection(second.index)
        if len(shared):
            speeds = [sums.tokens / sums.decode_s for sums in (part.loc[shared].sum() for part in (first, second))]
            differences.append(abs(float(speeds[0] / speeds[1]) - 1))
    return max(differences, default=None)


def speeds_summary(speeds: Sequence[Speed]) -> list[Mapping[str, object]]:
    """Speeds as plain values for summary.json."""
    return [dict(vars(speed)) for speed in speeds]


def _by_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """Tokens and decode seconds of each prompt: sums over its sequences, then medians over its repeats."""
    return rows.groupby(["prompt_id", "repeat"])[["tokens", "decode_s"]].sum().groupby("prompt_id").median()


def _rates(grid: pd.DataFrame, weights: pd.DataFrame) -> Estimates:
    """Tokens a second of one policy on the prompts of a grid. weights: (resamples, prompts), with prompts as columns."""
    tokens, seconds = (grid[name].to_numpy(float)[None] for name in ("tokens", "decode_s"))
    return ratio_of_sums(tokens, seconds, weights[list(grid.index)].to_numpy())

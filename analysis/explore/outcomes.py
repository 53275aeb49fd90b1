"""From evaluated tasks to answers: speeds with intervals, objectives, and how sure the ranking is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.explore.evaluation import Evaluated
from analysis.study.study import Objective
from traces.metrics.bootstrap import Estimates, ratio_of_sums, resampling_weights
from traces.metrics.speeds import Speed, speeds_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Policies in one scenario. speeds: one each. resampled: (resamples, policies) tokens/s, the same prompts drawn for
    all policies. objectives: (policies, objectives)."""

    labels: tuple[str, ...]
    speeds: tuple[Speed, ...]
    resampled: Floats
    objectives: Floats

    @property
    def best(self) -> int:
        """The fastest policy."""
        return int(np.argmax([speed.tokens_per_s for speed in self.speeds]))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How sure the first place is, by a bootstrap over prompts.

    probability_best: share of the resamples in which the best policy stays the fastest. expected_regret: mean loss of
    speed against the resample's own fastest. runner_up: the policy that wins most often otherwise. gain: over the
    runner-up.
    """

    best: str
    probability_best: float
    expected_regret: float
    runner_up: str | None
    gain: float | None
    gain_interval: tuple[float, float] | None


def merge(parts: Sequence[Evaluated]) -> Evaluated:
    """Tasks of one workload as one."""
    return Evaluated(
        labels=tuple(label for part in parts for label in part.labels),
        counts={name: np.concatenate([part.counts[name] for part in parts]) for name in parts[0].counts},
        seconds={name: np.concatenate([part.seconds[name] for part in parts], axis=1) for name in parts[0].seconds},
        peak_kv_tokens=np.concatenate([part.peak_kv_tokens for part in parts]),
    )


def score(
    found: Evaluated,
    baseline: Evaluated,
    timing: int,
    prompts: Sequence[str],
    *,
    temperature: float,
    objectives: Sequence[Objective],
    seed: int = 0,
) -> Scored:
    """Policies under one timing. prompts: of each request; requests of one prompt are drawn together."""
    names, of_request = np.unique(np.asarray(prompts), return_inverse=True)
    group = np.zeros((len(prompts), len(names)))
    group[np.arange(len(prompts)), of_request] = 1.0
    weights = resampling_weights(len(names), seed=seed)
    tokens, seconds = found.counts["num_emitted"] @ group, found.seconds["decode_s"][timing] @ group
    base = baseline.counts["num_emitted"][:1] @ group, baseline.seconds["decode_s"][timing, :1] @ group
    rates = ratio_of_sums(tokens, seconds, weights)
    speeds = speeds_of(
        found.labels,
        rates,
        rates.over(ratio_of_sums(*base, weights)),
        temperature=temperature,
        num_prompts=len(names),
        num_requests=len(prompts),
        num_unclean=0,
        tokens_per_target_forward=found.counts["num_emitted"].sum(axis=1) / found.counts["num_rounds"].sum(axis=1),
    )
    columns = [objective_values(objective, found, timing) for objective in objectives]
    return Scored(
        labels=found.labels, speeds=tuple(speeds), resampled=rates.resampled, objectives=np.stack(columns, axis=1)
    )


def objective_values(objective: Objective, found: Evaluated, timing: int) -> Floats:
    """(policies,) of one objective.

    speed: decode tokens/s. rollback: drafted but never emitted / drafted (METHOD Q14, second definition), 0 without
    drafts.
    energy: busy device seconds a token, draft and target alike, a proxy. memory: peak speculative cache entries.
    """
    tokens = found.counts["num_emitted"].sum(axis=1)
    if objective is Objective.SPEED:
        values = tokens / found.seconds["decode_s"][timing].sum(axis=1)
    elif objective is Objective.ROLLBACK:
        values = found.counts["num_lost"].sum(axis=1) / np.maximum(1, found.counts["num_drafted"].sum(axis=1))
    elif objective is Objective.ENERGY:
        busy = found.seconds["draft_busy_s"][timing] + found.seconds["target_busy_s"][timing]
        values = busy.sum(axis=1) / tokens
    else:
        values = found.peak_kv_tokens.astype(float)
    floats: Floats = np.asarray(values, dtype=float)
    return floats


def rank(scored: Scored) -> Ranking:
    """How sure the fastest policy is the fastest."""
    best, rates = scored.best, scored.resampled
    wins = np.bincount(np.argmax(rates, axis=1), minlength=len(scored.labels)) / len(rates)
    regret = float((1 - rates[:, best] / rates.max(axis=1)).mean())
    if len(scored.labels) == 1:
        return Ranking(
            best=scored.labels[0],
            probability_best=1.0,
            expected_regret=0.0,
            runner_up=None,
            gain=None,
            gain_interval=None,
        )
    # Most wins besides the best; by speed among those that never win.
    order = np.lexsort((-np.array([speed.tokens_per_s for speed in scored.speeds]), -wins))
    second = int(next(row for row in order if row != best))
    first, other = (Estimates(np.array([scored.speeds[row].tokens_per_s]), rates[:, [row]]) for row in (best, second))
    gain = first.over(other)
    ((low, high),) = gain.intervals()
    return Ranking(
        best=scored.labels[best],
        probability_best=float(wins[best]),
        expected_regret=regret,
        runner_up=scored.labels[second],
        gain=float(gain.values[0]) - 1,
        gain_interval=(low - 1, high - 1),
    )

"""From evaluated tasks to answers: speeds with intervals, objectives, and how sure the ranking is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.explore.search import pareto_front
from analysis.explore.sensitivity import ParameterEffect, parameter_effects
from analysis.explore.work.evaluation import Evaluated, Timing
from analysis.study.questions import Question
from analysis.study.study import Objective, Study
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from traces.metrics.bootstrap import Estimates, ratio_of_sums, resampling_weights
from traces.metrics.speeds import Speed, speeds_of, speeds_summary

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Policies in one scenario. speeds: one each. resampled: (resamples, policies) tokens/s, the same prompts drawn for
    all policies. objectives: (policies, objectives)."""

    policies: tuple[Policy, ...]
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
        policies=tuple(policy for part in parts for policy in part.policies),
        counts={name: np.concatenate([part.counts[name] for part in parts]) for name in parts[0].counts},
        seconds={name: np.concatenate([part.seconds[name] for part in parts], axis=1) for name in parts[0].seconds},
        peak_kv_tokens=np.concatenate([part.peak_kv_tokens for part in parts]),
    )


def score(
    evaluated: Evaluated,
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
    tokens, seconds = evaluated.counts["num_emitted"] @ group, evaluated.seconds["decode_s"][timing] @ group
    base = baseline.counts["num_emitted"][:1] @ group, baseline.seconds["decode_s"][timing, :1] @ group
    rates = ratio_of_sums(tokens, seconds, weights)
    speeds = speeds_of(
        list(map(label_of, evaluated.policies)),
        rates,
        rates.over(ratio_of_sums(*base, weights)),
        temperature=temperature,
        num_prompts=len(names),
        num_requests=len(prompts),
        num_unclean=0,
        tokens_per_target_forward=evaluated.counts["num_emitted"].sum(axis=1)
        / evaluated.counts["num_rounds"].sum(axis=1),
    )
    columns = [objective_values(objective, evaluated, timing) for objective in objectives]
    return Scored(
        policies=evaluated.policies,
        speeds=tuple(speeds),
        resampled=rates.resampled,
        objectives=np.stack(columns, axis=1),
    )


def objective_values(objective: Objective, evaluated: Evaluated, timing: int) -> Floats:
    """(policies,) of one objective.

    speed: decode tokens/s. rollback: drafted but never emitted / drafted (METHOD Q14, second definition), 0 without
    drafts.
    energy: busy device seconds a token, draft and target alike, a proxy. memory: peak speculative cache entries.
    """
    tokens = evaluated.counts["num_emitted"].sum(axis=1)
    if objective is Objective.SPEED:
        values = tokens / evaluated.seconds["decode_s"][timing].sum(axis=1)
    elif objective is Objective.ROLLBACK:
        values = evaluated.counts["num_lost"].sum(axis=1) / np.maximum(1, evaluated.counts["num_drafted"].sum(axis=1))
    elif objective is Objective.ENERGY:
        busy = evaluated.seconds["draft_busy_s"][timing] + evaluated.seconds["target_busy_s"][timing]
        values = busy.sum(axis=1) / tokens
    else:
        values = evaluated.peak_kv_tokens.astype(float)
    floats: Floats = np.asarray(values, dtype=float)
    return floats


def rank(scored: Scored) -> Ranking:
    """How sure the fastest policy is the fastest."""
    best, rates = scored.best, scored.resampled
    wins = np.bincount(np.argmax(rates, axis=1), minlength=len(scored.policies)) / len(rates)
    regret = float((1 - rates[:, best] / rates.max(axis=1)).mean())
    if len(scored.policies) == 1:
        return Ranking(
            best=scored.speeds[0].policy,
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
        best=scored.speeds[best].policy,
        probability_best=float(wins[best]),
        expected_regret=regret,
        runner_up=scored.speeds[second].policy,
        gain=float(gain.values[0]) - 1,
        gain_interval=(low - 1, high - 1),
    )


@dataclass(frozen=True)
class Answer:
    """What one question's policies are worth in one scenario."""

    question: Question
    timing: Timing
    scored: Scored

    @property
    def scenario(self) -> str:
        """Its name in tables."""
        return self.question.scenario(self.timing)

    def table(self, objectives: Sequence[Objective]) -> pd.DataFrame:
        """Rows of results.parquet. objectives: those of `scored`, in their order."""
        scored, timing = self.scored, self.timing
        table = pd.DataFrame(speeds_summary(scored.speeds))
        for name in ("interval", "speedup_interval"):
            prefix = "" if name == "interval" else "speedup_"
            table[f"{prefix}low"], table[f"{prefix}high"] = zip(*table.pop(name), strict=True)
        table.insert(0, "scenario", self.scenario)
        table.insert(1, "method", table.policy.str.partition(":")[0])
        table["alignment"], table["placement"] = self.question.alignment, timing.placement.label
        table["cost_ratio"] = self.question.cost_ratio if timing.cost_ratio is None else timing.cost_ratio
        for column, objective in enumerate(objectives):
            table[f"objective_{objective}"] = scored.objectives[:, column]
        wins = np.bincount(np.argmax(scored.resampled, axis=1), minlength=len(scored.policies))
        table["probability_best"] = wins / len(scored.resampled)
        table["is_pareto"] = pareto_front(scored.objectives, objectives)
        return table

    def effects(self) -> list[ParameterEffect]:
        """What the choice depends on: see `analysis.explore.sensitivity`."""
        scored = self.scored
        order = np.argsort([-speed.tokens_per_s for speed in scored.speeds])
        contenders = [scored.policies[row] for row in order]
        return parameter_effects(self.question.workload, self.timing, contenders, scored.policies[scored.best])


def answer(question: Question, evaluated: Evaluated, baseline: Evaluated, timing: int, study: Study) -> Answer:
    """The answer under one timing of the question's workload, by its number."""
    scored = score(
        evaluated,
        baseline,
        timing,
        [trace.prompt_id for trace in question.workload.traces],
        temperature=question.temperature,
        objectives=study.objectives,
        seed=study.seed,
    )
    return Answer(question, question.workload.timings[timing], scored)

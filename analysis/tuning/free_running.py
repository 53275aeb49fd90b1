"""Drafts that go on until the verdict comes, where that is faster: `num_further` as an axis of the search.

At constant speed a draft that runs free is as fast as the best fixed one and no faster, so that a search on mean times says
nothing of it. Here times are drawn from the latencies' own spread, as they were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.tuning.measured import Measured, first_requests
from analysis.tuning.search import Axis, Chosen, Family, tune
from sim.decoding.policies.base import Policy
from sim.engine import simulate, summarise
from sim.latency.base import LatencyModel
from traces.progress import Report, silent
from traces.schema import RequestTrace

MAX_TOKENS, MAX_FREE_TRIED = 1500, 20
MIN_GAIN = 0.01  # a draft that runs free asks for more of an engine
FURTHER = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
_FAMILIES = ("pearl", "specbranch", "specbranch without H-RAD", "outcome_hedging")
_JUDGES = (1, 2, 3, 4)  # seeds of draws that nothing was chosen on


def with_free_drafts(
    chosen: Mapping[str, Chosen], traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report = silent
) -> dict[str, Chosen]:
    """The same choices, those of methods that can with a draft that runs free where it gains MIN_GAIN on every one of several
    draws of the times that it was not chosen on; the remark says how much. Traces of one temperature."""
    measured, used, found = Measured.of(traces, latency), first_requests(traces, MAX_TOKENS), dict(chosen)
    lengths_of = {name: getattr(choice.policy, "draft_length", 0) for name, choice in chosen.items()}
    names = [name for name in _FAMILIES if lengths_of.get(name)]
    for index, name in enumerate(names):
        choice = chosen[name]
        fixed: Any = choice.policy  # with draft_length and num_further, which a Policy need not have
        lengths = range(1, fixed.draft_length + 1)
        family = Family(
            starts=(fixed, *(_freed(fixed, length) for length in {1, (fixed.draft_length + 1) // 2})),
            axes=(Axis.of("draft_length", tuple(lengths)), Axis.of("num_further", FURTHER)),
            is_allowed=measured.answers,
        )
        free: Any = tune(family, lambda policies: _drawn(policies, used, latency, 0), max_tried=MAX_FREE_TRIED).policy
        if free.num_further:
            pairs = [_drawn([free, fixed], used, latency, seed) for seed in _JUDGES]
            gains = [float(mine / its) - 1 for mine, its in pairs]
            if min(gains) >= MIN_GAIN:
                remark = f"{choice.remark} {name}'s draft runs free: {np.mean(gains):+.1%} predicted with drawn times.".strip()
                found[name] = replace(
                    choice, policy=free, tokens_per_s=choice.tokens_per_s * (1 + float(np.mean(gains))), remark=remark
                )
        progress(index + 1, len(names))
    return found


def _freed(fixed: Any, length: int) -> Policy:
    """The same method that has to draft `length` tokens only, and may draft as many as before, and as many again."""
    wanted = 2 * fixed.draft_length - length
    freed: Policy = replace(fixed, draft_length=length, num_further=min(FURTHER, key=lambda more: abs(more - wanted)))
    return freed


def _drawn(
    policies: Sequence[Policy], traces: Sequence[RequestTrace], latency: LatencyModel, seed: int
) -> NDArray[np.float64]:
    """(policies,) tokens/s with drawn times."""
    runs = [simulate(policy, traces, latency, rng=np.random.default_rng(seed), record_ops=False) for policy in policies]
    return np.array([summarise(run).decode_tokens_per_s for run in runs])

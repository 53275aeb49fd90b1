"""Alignments by name: what outcomes a study runs its policies on.

    recorded              the run's own traces, exact
    resampled             as many requests drawn from the joint law of signal and outcome
    geometric:alpha=0.7   the textbook's constant acceptance (signals tell nothing); rank_decay=... for the ranks
    hazard, markov        chains fitted to the traces; alpha=... shifts them to another mean acceptance
    informed              a logit that drifts, of which the draft's confidence shows what the recorded margins do
    ratio, point_mass     the recorded sequences under the rules of serving engines (`sim.decoding.rules`), for policies that
                          read no signals; at temperature 0 they are the recorded ones

Sampled traces are drawn once and shared by all policies: common random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.decoding.acceptance_models import (
    GEOMETRIC_SETTINGS,
    AcceptanceModel,
    Chained,
    Geometric,
    JointEmpirical,
    parse_acceptance,
)
from sim.decoding.informed import Informed
from sim.decoding.rules import under_rules
from traces.fits.acceptance.chain import fit_hazard, fit_markov
from traces.fits.acceptance.informed import fit_informed
from traces.fits.acceptance.joint import fit_acceptance
from traces.fits.signals import fit_ranks
from traces.schema import RequestTrace, Rule

KINDS = {
    "recorded": (),
    "resampled": (),
    "geometric": GEOMETRIC_SETTINGS,
    "hazard": ("alpha",),
    "markov": ("alpha",),
    "informed": (),
    "ratio": (),
    "point_mass": (),
}


def aligned_traces(label: str, traces: Sequence[RequestTrace], *, seed: int) -> list[RequestTrace]:
    """As many requests as were recorded (of one temperature), each as long as one of them."""
    kind, numbers = parse_acceptance(label, KINDS)
    if kind == "recorded":
        return list(traces)
    if kind in ("ratio", "point_mass"):
        return under_rules(traces, Rule(kind), seed=seed)
    model = _model_of(kind, numbers, traces)
    rngs = np.random.default_rng(seed).spawn(len(traces))
    return [
        replace(model.sample(trace.num_tokens, trace.request_id, rng), num_prompt_tokens=trace.num_prompt_tokens)
        for trace, rng in zip(traces, rngs, strict=True)
    ]


def _model_of(kind: str, numbers: Mapping[str, Any], traces: Sequence[RequestTrace]) -> AcceptanceModel:
    if kind == "geometric":
        depth = min(trace.tail_depth for trace in traces)
        return replace(Geometric(**numbers), tail_depth=depth, temperature=traces[0].temperature)
    if kind == "resampled":
        return JointEmpirical(fit_acceptance(traces), temperature=traces[0].temperature)
    if kind == "informed":
        depth = min(trace.tail_depth for trace in traces)
        decay, law = fit_ranks(traces).decay, fit_informed(traces)
        return Informed(law=law, window=1, rank_decay=decay, tail_depth=depth, temperature=traces[0].temperature)
    chain = fit_hazard(traces) if kind == "hazard" else fit_markov(traces)
    return Chained(chain.shifted_to(numbers["alpha"]) if numbers else chain, traces)

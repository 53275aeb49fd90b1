"""Alignments by name: what outcomes a study runs its policies on.

    recorded              the run's own traces, exact
    resampled             as many requests drawn from the joint law of signal and outcome
    geometric:alpha=0.7   the textbook's constant acceptance (signals tell nothing)
    hazard, markov        chains fitted to the traces; alpha=... shifts them to another mean acceptance

Sampled traces are drawn once and shared by all policies: common random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.decoding.acceptance_models import AcceptanceModel, Chained, Geometric, JointEmpirical
from traces.fits.acceptance.chain import fit_hazard, fit_markov
from traces.fits.acceptance.joint import fit_acceptance
from traces.schema import RequestTrace

KINDS = ("recorded", "resampled", "geometric", "hazard", "markov")


@dataclass(frozen=True)
class Alignment:
    """kind: one of KINDS. alpha: mean acceptance; None leaves the fitted one."""

    kind: str
    alpha: float | None = None


def parse_alignment(label: str) -> Alignment:
    """The alignment that a label names.

    >>> parse_alignment("geometric:alpha=0.7")
    Alignment(kind='geometric', alpha=0.7)
    """
    kind, _, text = label.strip().partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown alignment {kind!r}; known are {', '.join(KINDS)}.")
    if not text:
        if kind == "geometric":
            raise ValueError("the alignment geometric needs its acceptance: geometric:alpha=0.7.")
        return Alignment(kind)
    key, _, value = text.partition("=")
    try:
        alpha = float(value)
    except ValueError:
        alpha = float("nan")
    if key.strip() != "alpha" or not 0 < alpha < 1:
        raise ValueError(f"alignment {label!r}: write {kind}:alpha=0.7, alpha between 0 and 1.")
    if kind in ("recorded", "resampled"):
        raise ValueError(f"alignment {label!r}: what was {kind} has the acceptance it has; use markov:alpha={alpha:g}.")
    return Alignment(kind, alpha)


def aligned_traces(label: str, traces: Sequence[RequestTrace], *, seed: int) -> list[RequestTrace]:
    """As many requests as were recorded (of one temperature), each as long as one of them."""
    alignment = parse_alignment(label)
    if alignment.kind == "recorded":
        return list(traces)
    model = _model_of(alignment, traces)
    rngs = np.random.default_rng(seed).spawn(len(traces))
    return [
        replace(model.sample(trace.num_tokens, trace.request_id, rng), num_prompt_tokens=trace.num_prompt_tokens)
        for trace, rng in zip(traces, rngs, strict=True)
    ]


def _model_of(alignment: Alignment, traces: Sequence[RequestTrace]) -> AcceptanceModel:
    if alignment.kind == "geometric":
        assert alignment.alpha is not None
        depth = min(trace.tail_depth for trace in traces)
        return Geometric(alpha=alignment.alpha, tail_depth=depth, temperature=traces[0].temperature)
    if alignment.kind == "resampled":
        return JointEmpirical(fit_acceptance(traces), temperature=traces[0].temperature)
    chain = fit_hazard(traces) if alignment.kind == "hazard" else fit_markov(traces)
    return Chained(chain if alignment.alpha is None else chain.shifted_to(alignment.alpha), traces)

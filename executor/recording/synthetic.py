"""Synthetic acceptance: a law or a recorded trace decides every outcome, and real models only take their time.

It tells latency error from acceptance error, and lets the shapes of models run whose weights are not at hand. Such a run
says nothing about tokens, and is marked so.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from executor.request import Request
from sim.decoding.acceptance_models import GEOMETRIC_SETTINGS, AcceptanceModel, Geometric, Recorded, parse_acceptance
from sim.decoding.policies.base import Policy
from sim.decoding.replay import TraceWorld
from sim.decoding.world import World
from traces.folder.run import read_run
from traces.schema import RequestTrace


class SyntheticAcceptance:
    """World for the requests of one run, from a label: `geometric:alpha=0.8,rank_decay=0.5` or `run:FOLDER`.

    A request's outcomes follow from the label and the request's noise key, so that every policy meets the same ones.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._model = _model_of(label)

    def trace_of(self, request: Request, request_id: int = 0) -> RequestTrace:
        """Everything that the outcomes of a request depend on."""
        seed = [request.noise_key, zlib.crc32(self.label.encode())]
        trace = self._model.sample(request.max_new_tokens, request_id, np.random.default_rng(seed))
        return replace(
            trace,
            prompt_id=request.prompt_id,
            num_prompt_tokens=len(request.tokens),
            max_new_tokens=request.max_new_tokens,
            temperature=request.sampling.temperature,
        )

    def outcomes(self, request: Request, policy: Policy) -> World:
        """What decides in the models' place while this policy runs."""
        return TraceWorld(self.trace_of(request), policy.needs, lambda command: command.num_steps)


def _model_of(label: str) -> AcceptanceModel:
    kind, _, folder = label.partition(":")
    if kind == "run" and folder:
        traces = read_run(Path(folder)).traces()
        try:
            return Recorded(traces)
        except ValueError as error:
            raise ValueError(f"acceptance {label!r}: {error}") from None
    try:
        return Geometric(**parse_acceptance(label, {"geometric": GEOMETRIC_SETTINGS})[1])
    except ValueError as error:
        raise ValueError(f"{error} Write geometric:alpha=0.8, or run:FOLDER for a run's own acceptance.") from None

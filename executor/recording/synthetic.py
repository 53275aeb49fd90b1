"""Synthetic acceptance: a law or a recorded trace decides every outcome, and real models only take their time.

It tells latency error from acceptance error, and lets the shapes of models run whose weights are not at hand. Such a run
says nothing about tokens, and is marked so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from executor.loop import Outcomes
from executor.request import Request
from sim.decoding.acceptance_models import AcceptanceModel, Geometric, Recorded
from sim.decoding.policies.base import Policy
from sim.decoding.replay import TraceWorld
from traces.folder.run import read_run
from traces.schema import RequestTrace


class SyntheticAcceptance:
    """Outcomes for the requests of one run, from a label: `geometric:alpha=0.8,rank_decay=0.5` or `run:FOLDER`.

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

    def outcomes(self, request: Request, policy: Policy) -> Outcomes:
        """What decides in the models' place while this policy runs."""
        return TraceWorld(self.trace_of(request), policy.needs)


def _model_of(label: str) -> AcceptanceModel:
    kind, _, rest = label.partition(":")
    if kind == "run" and rest:
        return Recorded(read_run(Path(rest)).traces())
    if kind != "geometric":
        raise ValueError(
            f"unknown acceptance {label!r}; write geometric:alpha=0.8 (with rank_decay=0.5 if you like) or run:FOLDER."
        )
    settings: Mapping[str, Any] = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
    try:
        return TypeAdapter(Geometric).validate_python(settings)
    except ValidationError as error:
        raise ValueError(f"acceptance {label!r}: {error.errors()[0]['msg']}; write geometric:alpha=0.8.") from None

"""A short recording before a real one: enough to choose settings by, where nothing of a pair is known yet."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from analysis.study.candidates import CALIBRATION_POLICIES, LOOKUP_CALIBRATION_POLICIES, hrad_calibration_policies
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.progress import Report, silent
from traces.schema import RequestTrace

if TYPE_CHECKING:
    from executor.pair import Session
    from executor.recording.settings import RecordSettings

NUM_PROMPTS = 3
MAX_NEW_TOKENS = 64


class Preview(NamedTuple):
    """Traces of a few requests, and the latencies of their run."""

    traces: list[RequestTrace]
    latency: LatencyModel


def preview(settings: RecordSettings, session: Session, *, progress: Report = silent) -> Preview:
    """Decode the first few prompts of a recording under the policies that calibrate; nothing of it is kept on disk."""
    from executor.recording.recorder import record_run

    policies = CALIBRATION_POLICIES + hrad_calibration_policies(session.class_window)
    if settings.pair.draft == "prompt_lookup":
        policies = LOOKUP_CALIBRATION_POLICIES
    decoding, prompts = settings.decoding, settings.prompts
    short = replace(
        settings,
        decoding=replace(
            decoding, policies=policies, acceptance="", max_new_tokens=min(MAX_NEW_TOKENS, decoding.max_new_tokens)
        ),
        prompts=replace(prompts, num=min(NUM_PROMPTS, prompts.num)),
        repeats=1,
        aligns=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = record_run(short, Path(folder) / "preview", session=session, progress=progress)
        return Preview(run.traces(), FittedLatency(calibrate(run, seed=decoding.seed)))

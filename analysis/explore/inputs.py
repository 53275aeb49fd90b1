"""What an analysis reads: a run folder or a foreign trace, and the latencies that it runs on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from sim.decoding.acceptance_models import GEOMETRIC_SETTINGS, Geometric, parse_acceptance, sample_requests
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from sim.latency.roofline import RooflineLatency
from traces.files import write_text
from traces.fits.calibration import Calibration, calibrate
from traces.folder.run import Run, read_run
from traces.importers.base import ImportedTraces
from traces.importers.catalog import read_foreign
from traces.importers.unseen import Unseen
from traces.mistakes import first_mistake, unique_json
from traces.schema import RequestTrace

_LAWFUL_REQUESTS, _LAWFUL_TOKENS, _LAWFUL_PROMPT, _LAWFUL_TAIL = 24, 400, 512, 16
ROOFLINE = "roofline"  # the kind of a file of planned latencies; a calibration names none
LatencySource: TypeAlias = LatencyModel | Path | None  # a model, a file of `read_latency`, or None: fitted from the run


@dataclass(frozen=True)
class LawAlone:
    """In the place of a run: requests of equal length, whose outcomes the laws of a study decide."""

    alpha: float
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = "a study without a run"

    def traces(self) -> list[RequestTrace]:
        """24 requests of 512 and 400 tokens, of the first law; each scenario draws its own."""
        law = Geometric(alpha=self.alpha, num_prompt_tokens=_LAWFUL_PROMPT, tail_depth=_LAWFUL_TAIL)
        return sample_requests(law, _LAWFUL_REQUESTS, _LAWFUL_TOKENS, seed=0)


def law_alone(alignments: Sequence[str]) -> LawAlone:
    """For a study that needs no run. Raises ValueError where one of its alignments is made from recorded outcomes."""
    if wrong := [label for label in alignments if not label.startswith("geometric")]:
        raise ValueError(
            f"without a run nothing says which drafts are accepted ({', '.join(wrong)}); give --run, or a law such as "
            "--alignment geometric:alpha=0.8 together with --calibration."
        )
    return LawAlone(parse_acceptance(alignments[0], {"geometric": GEOMETRIC_SETTINGS})[1]["alpha"])


def open_recording(
    path: Path | None,
    *,
    temperatures: Sequence[float] = (),
    unseen: Unseen = Unseen.REJECTED,
    alignments: Sequence[str] = (),
) -> Run | ImportedTraces | LawAlone:
    """A run folder, a foreign trace in a file, or (None) the laws that a study's alignments name.

    temperatures: if exactly one is asked about, it is that of foreign requests that do not name theirs. unseen: what to take
    for outcomes that a foreign trace does not know. Raises RunError or ForeignTraceError.
    """
    if path is None:
        return law_alone(alignments)
    if path.is_file():
        return read_foreign(path, temperature=temperatures[0] if len(temperatures) == 1 else None, unseen=unseen)
    return read_run(path)


def latency_of(recording: Run | ImportedTraces | LawAlone, source: LatencySource = None) -> LatencyModel:
    """The latencies for a recording's policies. source: None takes the calibration beside the run, or fits one now.

    Raises ValueError without a source for a foreign trace, which holds no operations to fit.
    """
    if isinstance(source, Path):
        return read_latency(source)
    if source is not None:
        return source
    if isinstance(recording, ImportedTraces | LawAlone):
        raise ValueError(f"{recording.source} holds no times of operations; name a calibration with --calibration.")
    beside = recording.folder / "calibration.json"
    return read_latency(beside) if beside.exists() else FittedLatency(calibrate(recording))


def read_latency(path: Path) -> LatencyModel:
    """The latencies of a file that `specbranch calibrate` or `specbranch roofline` wrote; ValueError for another one."""
    try:
        values = unique_json(path.read_bytes())
    except (OSError, ValueError):
        values = None  # the calibration's reader says what is wrong with the file
    if not isinstance(values, dict) or values.get("kind") != ROOFLINE:
        return FittedLatency(Calibration.load(path))
    try:
        return TypeAdapter(RooflineLatency).validate_python(values.get("latency"))
    except ValidationError as error:
        raise ValueError(f"{path} is not a roofline: {first_mistake(error)}; write it again.") from error


def doubt_of_latency(latency: LatencyModel) -> str:
    """Why predictions with these latencies support no claim about speed; empty where nothing is known against them."""
    return latency.calibration.doubt if isinstance(latency, FittedLatency) else ""


def write_latency(latency: LatencyModel, path: Path) -> bool:
    """Write latencies to a new file for `read_latency`; False for a model that has no file."""
    if isinstance(latency, RooflineLatency):
        write_roofline(latency, path)
    elif isinstance(latency, FittedLatency):
        latency.calibration.save(path)
    else:
        return False
    return True


def write_roofline(latency: RooflineLatency, path: Path) -> None:
    """Write planned latencies to a new file for `read_latency`; ValueError if the file exists."""
    if path.exists():
        raise ValueError(f"{path} exists already; name another place with --output.")
    values = {"kind": ROOFLINE, "latency": TypeAdapter(RooflineLatency).dump_python(latency, mode="json")}
    write_text(path, json.dumps(values, indent=1) + "\n")

"""The whole loop on a pair: record, calibrate, explore, validate, and a figure of it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.check.compare import models_of
from analysis.check.precision import Effort
from analysis.check.validate import validate_run
from analysis.check.validation import VALIDATION, PolicyCheck, Validation
from analysis.cli.conclusion import print_json
from analysis.cli.progress import progress_bar
from analysis.cli.tables import print_checks, print_doubt, print_reason, validation_lines
from analysis.explore.exploration import Exploration, explore_run
from analysis.figures.saving import save_figure
from analysis.report.answers import verdicts_of
from analysis.study.candidates import default_grid, validated_policies
from analysis.tuning.auto import default_policies
from analysis.verdict import verdict_lines
from sim.decoding.policies.catalog import parse_policy
from traces.files import write_text
from traces.fits.calibration import calibrate
from traces.folder.perfetto import write_timeline
from traces.folder.writer import check_new_folder, write_json

if TYPE_CHECKING:
    from executor.pair import Session
    from executor.recording.settings import RecordSettings

WIDTH = 100
TAIL_DEPTH = 8  # as deep as a confidence rule of the default grid looks


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo runs.

    prompts: their source. searches: whether every method is explored with settings of its own (`analysis.tuning.auto`), or the
    default grid alone. methods: whose best setting is measured at every temperature; draft_lengths: of speculative sampling,
    pearl_lengths of PEARL, measured besides. num_timed: of the num_recorded prompts, those that calibrate latencies.
    num_measured: prompts at most; max_s: seconds of measuring on them. Every request decodes max_new_tokens, past the end of
    the text: at T = 1 half of the prompts end at once, and an empty answer takes its time without telling anything.
    """

    num_recorded: int
    num_timed: int
    num_measured: int
    max_s: float
    max_new_tokens: int
    temperatures: tuple[float, ...]
    draft_lengths: tuple[int, ...]
    pearl_lengths: tuple[int, ...]
    methods: tuple[str, ...]
    prompts: str = "held_out"
    searches: bool = False


FULL = DemoSize(
    num_recorded=64,
    num_timed=24,
    num_measured=120,
    max_s=108.0,
    max_new_tokens=48,
    temperatures=(0.0, 1.0),
    draft_lengths=(2,),
    pearl_lengths=(4,),
    methods=("fixed_length", "confidence_stop", "pearl"),
)
QUICK = DemoSize(
    num_recorded=40,
    num_timed=12,
    num_measured=120,
    max_s=15.0,
    max_new_tokens=32,
    temperatures=(1.0,),
    draft_lengths=(2, 4),
    pearl_lengths=(),
    methods=("pearl",),
)
# A target step of SmolLM2 takes ten times as long as one of the embedded pair.
_OVERLAPPED = ("fixed_length", "pearl", "specbranch", "outcome_hedging")
SMOLLM2_FULL = DemoSize(
    num_recorded=12,
    num_timed=5,
    num_measured=60,
    max_s=300.0,
    max_new_tokens=64,
    temperatures=(0.0, 1.0),
    draft_lengths=(),
    pearl_lengths=(),
    methods=_OVERLAPPED,
    prompts="questions",
    searches=True,
)
SMOLLM2_QUICK = replace(
    SMOLLM2_FULL,
    num_recorded=6,
    num_timed=3,
    max_s=60.0,
    max_new_tokens=48,
    temperatures=(0.0,),
    methods=_OVERLAPPED[1:],
)
SIZES = {  # pair -> (full, quick)
    "embedded": (FULL, QUICK),
    "smollm2": (SMOLLM2_FULL, SMOLLM2_QUICK),
}


def run_demo(
    console: Console,
    folder: Path,
    *,
    pair: str = "embedded",
    is_quick: bool = False,
    precision: float = 0.03,
    seed: int = 0,
    as_json: bool = False,
) -> Validation:
    """Run the loop and print its results; the folder, a new one, gets everything.

    precision: measuring ends when every speed-up is known so well, or its time is over (`analysis.check.precision.Effort`).
    pair: one of SIZES. as_json: the verdict goes to standard output, too, for programs. Raises ValueError for another pair,
    and for one that is not at hand.
    """
    from executor.pair import Session

    started = time.perf_counter()
    check_new_folder(folder)
    models_of(pair, target="embedded", draft="embedded", prompts="")  # is it known, and at hand?
    size = SIZES[pair][is_quick]
    effort = Effort(precision=precision, max_s=size.max_s)
    console = Console(file=console.file, width=min(WIDTH, console.width), record=False)
    settings = _settings(pair, size, seed)
    with Session(settings.pair) as session:
        _record(console, folder / "recorded", settings, session)
        explored = _explore(folder, size, seed)
        validation = _validate(console, folder, size, explored, effort=effort, session=session, seed=seed)
    _draw(folder / "speedup.png", validation, size.temperatures)
    verdicts = verdicts_of([folder])
    wall_s = time.perf_counter() - started
    write_json(folder / "summary.json", {VALIDATION: validation, "wall_s": wall_s, "is_quick": is_quick})
    if as_json:
        print_json(verdicts, folder)
    for line in filter(None, [*verdict_lines(verdicts), how_exact(validation, precision)]):
        console.print(line, highlight=False, markup=False)
    console.print()
    print_checks(console, validation)
    console.print()
    for line in validation_lines(validation):
        console.print(line, highlight=False, markup=False)
    print_reason(console, validation.reason)
    print_doubt(console, validation.note, explored.doubt)
    console.print(
        f"{explored.num_policies} policies were explored on {explored.num_tokens} recorded tokens in {explored.wall_s:.1f} s."
        f"\nEverything is in {folder} ({wall_s:.0f} s): speedup.png, summary.json, the latencies' fit in calibration.txt, "
        f"and the run folders recorded, explored and validated. A page of it: specbranch report {folder} --output report.html",
        highlight=False,
    )
    return validation


def how_exact(validation: Validation, precision: float) -> str:
    """How well the measured speed-ups are known; empty where that is not known."""
    if (reached := validation.widest_interval) is None:
        return ""
    ended = "as asked" if reached <= precision else f"{precision:.1%} was asked, but the time was over"
    return f"Every speed-up is known to within {reached:.1%} ({ended})."


def _settings(pair: str, size: DemoSize, seed: int) -> RecordSettings:
    from executor.models.settings import PairSettings
    from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings

    return RecordSettings(
        pair=PairSettings(target=pair, draft=pair),
        decoding=DecodingSettings(
            temperatures=size.temperatures, max_new_tokens=size.max_new_tokens, seed=seed, ignore_eos=True
        ),
        prompts=PromptSettings(source=size.prompts, num=size.num_recorded, num_timed=size.num_timed),
        tail_depth=TAIL_DEPTH,
    )


def _record(console: Console, folder: Path, settings: RecordSettings, session: Session) -> None:
    """A run folder with its timeline and its calibration, whose report stands beside the demo's results."""
    from executor.recording.recorder import record_run

    with progress_bar(console, "recording the pair on this machine", is_transient=True) as report:
        recorded = record_run(settings, folder, session=session, progress=report)
    write_timeline(recorded.ops, folder / "timeline.json")
    calibration = calibrate(recorded, seed=settings.decoding.seed)
    calibration.save(folder / "calibration.json")
    write_text(folder.parent / "calibration.txt", calibration.report() + "\n")


def _explore(folder: Path, size: DemoSize, seed: int) -> Exploration:
    """Every policy on the simulator, over the recorded traces and the calibrated latencies."""
    recorded = folder / "recorded"
    policies = default_policies(recorded, temperatures=size.temperatures) if size.searches else default_grid()
    return explore_run(recorded, folder / "explored", policies, seed=seed)


def _validate(
    console: Console,
    folder: Path,
    size: DemoSize,
    explored: Exploration,
    *,
    effort: Effort,
    session: Session,
    seed: int,
) -> Validation:
    """The best ones for real, on prompts that were not recorded."""
    best_labels = [explored.best_at(temperature, [m]).policy for temperature in size.temperatures for m in size.methods]
    policies = validated_policies(size.draft_lengths, size.pearl_lengths)
    policies += map(parse_policy, best_labels)
    with progress_bar(console, "measuring the best policies on other prompts", is_transient=True) as report:
        return validate_run(
            folder / "recorded",
            folder / "validated",
            policies,
            num_prompts=size.num_measured,
            seed=seed,
            effort=effort,
            session=session,
            progress=report,
        )


def _at(validation: Validation, temperature: float) -> list[PolicyCheck]:
    return [check for check in validation.policies if check.temperature == temperature]


def _draw(path: Path, validation: Validation, temperatures: Sequence[float]) -> Path:
    """Predicted (line) and measured (points) speed-up against draft length, one panel a temperature: the table's numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from analysis.figures.plots import speedup_by_draft_length

    figure = Figure(figsize=(5.2 * len(temperatures), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, temperature in zip(figure.subplots(1, len(temperatures), squeeze=False)[0], temperatures, strict=True):
        predicted = pd.DataFrame(
            [
                (*_method_and_length(check.policy), check.predicted_speedup, np.nan, np.nan)
                for check in _at(validation, temperature)
            ],
            columns=["method", "draft_length", "speedup", "low", "high"],
        )
        measured = pd.DataFrame(
            [
                (*_method_and_length(check.policy), check.speedup, *(check.best_speedup_interval or (np.nan, np.nan)))
                for check in _at(validation, temperature)
            ],
            columns=predicted.columns,
        )
        speedup_by_draft_length(axes, predicted, measured, ["fixed_length", "pearl"])
        doubt = f"\n{textwrap.fill(validation.note, 70)}" if validation.note else ""
        axes.set_title(f"T = {temperature:g}: does the simulator tell how long to draft?{doubt}", fontsize=10)
    save_figure(figure, path)
    return path


def _method_and_length(policy: str) -> tuple[str, int]:
    method, _, settings = policy.partition(":")
    _, key, length = settings.partition("draft_length=")
    return method, int(length.split(",")[0]) if key else 0


def next_folder(parent: Path) -> Path:
    """The first of parent/demo-1, parent/demo-2 ... that does not exist."""
    number = 1
    while (parent / f"demo-{number}").exists():
        number += 1
    return parent / f"demo-{number}"

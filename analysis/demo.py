"""The whole loop on the embedded pair: record, calibrate, explore, validate, and a figure of it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.check.validate import validate_run
from analysis.check.validation import VALIDATION, PolicyCheck, Validation
from analysis.cli.progress import progress_bar
from analysis.cli.tables import print_doubt, print_speeds, print_validation, short_label
from analysis.explore.exploration import Exploration, explore_run
from analysis.study.candidates import default_grid, validated_policies
from sim.decoding.policies.catalog import parse_policy
from traces.fits.calibration import calibrate
from traces.folder.perfetto import write_timeline
from traces.folder.writer import check_new_folder, write_json
from traces.metrics.speeds import measured_speeds

SPECULATIVE = ("fixed_length", "pearl", "confidence_stop")


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo runs."""

    num_recorded: int
    num_measured: int
    max_new_tokens: int
    temperatures: tuple[float, ...]
    draft_lengths: tuple[int, ...]


FULL = DemoSize(
    num_recorded=32, num_measured=14, max_new_tokens=96, temperatures=(0.0, 1.0), draft_lengths=(1, 2, 4, 6, 8)
)
QUICK = DemoSize(num_recorded=12, num_measured=6, max_new_tokens=64, temperatures=(1.0,), draft_lengths=(2, 4))


def run_demo(console: Console, output_dir: Path | None, *, is_quick: bool, seed: int = 0) -> Validation:
    """Run the loop and print its results; output_dir gets everything: None is the next runs/demo-N."""
    started = time.perf_counter()
    size = QUICK if is_quick else FULL
    folder = output_dir or _next_folder(Path("runs"))
    check_new_folder(folder)
    _record(console, folder / "recorded", size, seed)
    explored = _explore(console, folder, size, seed)
    validation = _validate(console, folder, size, explored, seed)
    figure = _draw(folder / "speedup.png", validation, size.temperatures)
    for line in _winners(validation, size.temperatures):
        console.print(line)
    wall_s = time.perf_counter() - started
    write_json(folder / "summary.json", {VALIDATION: validation, "wall_s": wall_s, "is_quick": is_quick})
    console.print(f"figure {figure}, everything in {folder}, {wall_s:.0f} s")
    return validation


def _winners(validation: Validation, temperatures: Sequence[float]) -> list[str]:
    """A line for each temperature with the fastest policy measured there; none where the times support no claim."""
    if validation.note:
        return []
    best = [max(_at(validation, t), key=lambda check: check.measured_tokens_per_s) for t in temperatures]
    return [
        f"T = {check.temperature:g}: fastest measured is {short_label(check.policy)}, "
        f"{check.speedup_over_autoregressive or 1:.2f} times autoregressive"
        for check in best
    ]


def _record(console: Console, folder: Path, size: DemoSize, seed: int) -> None:
    """A run folder with its timeline and its calibration."""
    from executor.recording.recorder import record_run
    from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings

    console.rule("1. record the pair on this machine")
    settings = RecordSettings(
        decoding=DecodingSettings(temperatures=size.temperatures, max_new_tokens=size.max_new_tokens, seed=seed),
        prompts=PromptSettings(num=size.num_recorded),
    )
    with progress_bar(console, "recording") as report:
        recorded = record_run(settings, folder, progress=report)
    print_speeds(console, "Measured", measured_speeds(recorded.requests, recorded.rounds))
    write_timeline(recorded.ops, folder / "timeline.json")

    console.rule("2. calibrate the simulator")
    calibration = calibrate(recorded, seed=seed)
    calibration.save(folder / "calibration.json")
    console.print(calibration.report(), highlight=False, markup=False)


def _explore(console: Console, folder: Path, size: DemoSize, seed: int) -> Exploration:
    console.rule("3. explore policies on the simulator")
    explored = explore_run(folder / "recorded", folder / "explored", default_grid(), seed=seed)
    console.print(
        f"{explored.num_policies} policies on {explored.num_tokens} recorded tokens in {explored.wall_s:.1f} s"
    )
    if explored.doubt:
        print_doubt(console, explored.doubt)
    else:
        print_speeds(console, "Best, predicted", [explored.best_at(t) for t in size.temperatures])
    return explored


def _validate(console: Console, folder: Path, size: DemoSize, explored: Exploration, seed: int) -> Validation:
    console.rule("4. run the best ones for real, on prompts that were not recorded")
    best_labels = [explored.best_at(temperature, [m]).policy for temperature in size.temperatures for m in SPECULATIVE]
    policies = validated_policies(size.draft_lengths, [length for length in size.draft_lengths if length > 1])
    policies += map(parse_policy, best_labels)
    with progress_bar(console, "measuring") as report:
        validation = validate_run(
            folder / "recorded",
            folder / "validated",
            policies,
            num_prompts=size.num_measured,
            seed=seed,
            progress=report,
        )
    console.print("the machine's speed drifts: latencies are fitted anew, to recorded prompts that ran in between")
    print_validation(console, validation)
    return validation


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
                (
                    *_method_and_length(check.policy),
                    check.speedup_over_autoregressive,
                    *(check.speedup_interval or (np.nan, np.nan)),
                )
                for check in _at(validation, temperature)
            ],
            columns=predicted.columns,
        )
        speedup_by_draft_length(axes, predicted, measured, ["fixed_length", "pearl"])
        doubt = f"\n{textwrap.fill(validation.note, 70)}" if validation.note else ""
        axes.set_title(f"T = {temperature:g}: does the simulator tell how long to draft?{doubt}", fontsize=10)
    figure.savefig(path, dpi=140)
    return path


def _method_and_length(policy: str) -> tuple[str, int]:
    method, _, settings = policy.partition(":")
    _, key, length = settings.partition("draft_length=")
    return method, int(length.split(",")[0]) if key else 0


def _next_folder(parent: Path) -> Path:
    """The first of parent/demo-1, parent/demo-2 ... that does not exist."""
    number = 1
    while (parent / f"demo-{number}").exists():
        number += 1
    return parent / f"demo-{number}"

"""Every method on one pair, one machine, one set of prompts: measured beside predicted, with what each threw away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.check.reports import read_report, typed_report, write_report
from analysis.check.uncertainty import UNKNOWN_SPREAD, calibration_spread
from analysis.check.validate import validate
from analysis.check.validation import VALIDATION, Validation
from analysis.study.candidates import (
    CALIBRATION_POLICIES,
    HRAD_CALIBRATION_POLICIES,
    LOOKUP_CALIBRATION_POLICIES,
    choose_lookup,
    choose_policies,
)
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import Run
from traces.folder.writer import check_new_folder
from traces.metrics.counts import count_rounds
from traces.metrics.machine_speed import drift_sentence, machine_speed_of
from traces.progress import Report, Stages, silent_stages
from traces.schema import RequestTrace

if TYPE_CHECKING:
    from executor.recording.settings import RecordSettings

COMPARISON = "comparison"


@dataclass(frozen=True, kw_only=True)
class ComparedPolicy:
    """One row of the table. Rollback in the three definitions of METHOD Q14: rejected / submitted draft tokens; drafted but
    never emitted / drafted; target positions that emitted nothing / all target positions. Speed-ups are of adjusted
    times (`traces.metrics.machine_speed`), except in old reports, which have no adjusted speeds. note: why the times of its
    run support no claim. reason: why tokens or rounds of its run are not identical."""

    family: str
    policy: str
    temperature: float
    tokens_per_s: float
    tokens_per_s_interval: tuple[float, float]
    predicted_tokens_per_s: float
    speedup_over_autoregressive: float | None
    speedup_interval: tuple[float, float] | None
    tokens_per_target_forward: float
    rollback_rate: float
    wasted_draft_rate: float
    wasted_target_rate: float
    draft_forwards_per_token: float
    tokens_identical: bool
    rounds_identical: bool
    note: str = ""
    reason: str = ""
    adjusted_tokens_per_s: float | None = None
    adjusted_interval: tuple[float, float] | None = None
    drift_range: tuple[float, float] | None = None

    @property
    def is_identical(self) -> bool:
        """Whether its tokens and its rounds are those that they should be."""
        return self.tokens_identical and self.rounds_identical


class Choose(Protocol):
    """Chooses a policy for each family, on traces of one temperature."""

    def __call__(
        self, traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report
    ) -> Mapping[str, Policy]:
        """Family -> policy."""
        ...


def compared_policies(
    measured: Run, validation: Validation, families: Mapping[float, Mapping[str, Policy]]
) -> list[ComparedPolicy]:
    """The table of a measured run: families[temperature][family] is the policy that ran for it."""
    checks = {(check.policy, check.temperature): check for check in validation.policies}
    rows = []
    for temperature, chosen in families.items():
        for family, policy in chosen.items():
            label = label_of(policy)
            check = checks[label, temperature]
            counts = count_rounds(_rounds_of(measured, label, temperature))
            rows.append(
                ComparedPolicy(
                    family=family,
                    policy=label,
                    temperature=temperature,
                    tokens_per_s=check.measured_tokens_per_s,
                    tokens_per_s_interval=check.measured_interval,
                    predicted_tokens_per_s=check.predicted_tokens_per_s,
                    speedup_over_autoregressive=check.speedup,
                    speedup_interval=check.best_speedup_interval,
                    tokens_per_target_forward=counts.tokens_per_target_forward,
                    rollback_rate=counts.rejected_rate,
                    wasted_draft_rate=counts.wasted_draft_rate,
                    wasted_target_rate=counts.wasted_target_rate,
                    draft_forwards_per_token=counts.draft_forwards_per_token,
                    tokens_identical=bool(check.tokens_identical),
                    rounds_identical=bool(check.rounds_identical),
                    note=validation.note,
                    reason=validation.reason,
                    adjusted_tokens_per_s=check.adjusted_tokens_per_s,
                    adjusted_interval=check.adjusted_interval,
                    drift_range=validation.drift_range,
                )
            )
    return rows


def compare(
    output_dir: Path,
    *,
    target: str = "embedded",
    draft: str = "embedded",
    hrad: str = "",
    temperatures: Sequence[float] = (0.0, 1.0),
    num_prompts: int = 32,
    max_new_tokens: int = 96,
    repeats: int = 1,
    is_quick: bool = False,
    seed: int = 0,
    ignores_generation_config: bool = False,
    allows_vocab_difference: bool = False,
    trusts_remote_code: bool = False,
    fit: Callable[[Run], LatencyModel] | None = None,
    progress: Stages = silent_stages,
) -> list[ComparedPolicy]:
    """Record and calibrate on some prompts, choose each family's settings on the simulator, run all of them on others.

    Writes recorded/ and compared/ run folders, and recorded_lookup/ and compared_lookup/ for prompt lookup, whose draft is
    another one: its speed-up is over autoregressive decoding in its own run. The whole table stands in comparison.json.
    fit: the latency model of a recorded run; None calibrates it.
    """
    from executor.models.settings import EngineSettings, PairSettings
    from executor.recording.schedule import check_prompts
    from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings

    check_new_folder(output_dir)
    settings = RecordSettings(
        pair=PairSettings(
            target=target,
            draft=draft,
            hrad=hrad,
            engine=EngineSettings(trusts_remote_code=trusts_remote_code),
            ignores_generation_config=ignores_generation_config,
            allows_vocab_difference=allows_vocab_difference,
        ),
        decoding=DecodingSettings(
            policies=CALIBRATION_POLICIES + (HRAD_CALIBRATION_POLICIES if hrad else ()),
            temperatures=tuple(temperatures),
            max_new_tokens=max_new_tokens,
            seed=seed,
        ),
        prompts=PromptSettings(num=num_prompts),
    )
    check_prompts(replace(settings, prompts=PromptSettings(num=2 * num_prompts)))  # both halves
    lookup = replace(
        settings,
        pair=replace(settings.pair, draft="prompt_lookup", hrad=""),
        decoding=replace(settings.decoding, policies=LOOKUP_CALIBRATION_POLICIES),
    )
    rows = _compare_pair(lookup, output_dir, "_lookup", choose_lookup, repeats=repeats, fit=fit, progress=progress)
    choose = partial(choose_policies, with_classes=bool(hrad), is_small=is_quick)
    rows = [
        *_compare_pair(settings, output_dir, "", choose, repeats=repeats, fit=fit, progress=progress),
        *(row for row in rows if row.family != "autoregressive"),
    ]
    write_report(output_dir, COMPARISON, rows)
    return rows


def _compare_pair(
    settings: RecordSettings,
    output_dir: Path,
    suffix: str,
    choose: Choose,
    *,
    repeats: int,
    fit: Callable[[Run], LatencyModel] | None,
    progress: Stages,
) -> list[ComparedPolicy]:
    """The comparison with one draft."""
    from executor.pair import Session
    from executor.recording.recorder import record, record_run
    from executor.recording.schedule import in_blocks, make_requests

    recorded_dir, compared_dir = (output_dir / f"{name}{suffix}" for name in ("recorded", "compared"))
    decoding, prompts = settings.decoding, settings.prompts
    with Session(settings.pair) as session:
        with progress(f"recording with draft {settings.pair.draft}") as report:
            recorded = record_run(settings, recorded_dir, session=session, progress=report)
        latency, traces = (fit or partial(_calibrated, seed=decoding.seed))(recorded), recorded.traces()
        families = {}
        for temperature in decoding.temperatures:
            usable = [trace for trace in traces if trace.temperature == temperature]
            with progress(f"choosing settings at T = {temperature:g}") as report:
                families[temperature] = choose(usable, latency, progress=report)
        policies = list(dict.fromkeys(policy for chosen in families.values() for policy in chosen.values()))
        measuring = replace(
            settings,
            decoding=replace(decoding, policies=tuple(map(label_of, policies))),
            prompts=replace(prompts, skip=prompts.skip + prompts.num),
            repeats=repeats,
        )
        blocks = in_blocks(
            make_requests(measuring, session),
            lambda request: [Autoregressive(), *dict.fromkeys(families[request.sampling.temperature].values())],
            repeats=repeats,
            seed=decoding.seed,
        )
        with progress("measuring") as report:
            measured = record(blocks, measuring, compared_dir, session=session, progress=report)
    spread = UNKNOWN_SPREAD
    if fit is None:
        machine = machine_speed_of(recorded.requests, recorded.rounds)
        spread = calibration_spread(recorded, machine, [Autoregressive(), *policies], traces)
    validation = validate(measured, traces, latency, seed=decoding.seed, spread=spread)
    rows = compared_policies(measured, validation, families)
    write_report(compared_dir, VALIDATION, validation)
    write_report(compared_dir, COMPARISON, rows)
    return rows


def _calibrated(run: Run, *, seed: int) -> LatencyModel:
    """The latencies of a run, whose calibration is left beside it."""
    calibration = calibrate(run, seed=seed)
    calibration.save(run.folder / "calibration.json")
    return FittedLatency(calibration)


def read_comparison(folder: Path) -> list[ComparedPolicy]:
    """The table in a folder of `compare`, written by this version or by the first. Raises `RunError` if there is none."""
    rows = read_report(folder, COMPARISON)
    unknown = float("nan")  # a rate of nothing, which JSON cannot hold
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        rows = [
            {key: unknown if key.endswith("_rate") and value is None else value for key, value in row.items()}
            for row in rows
        ]
    return typed_report(folder, COMPARISON, rows, TypeAdapter(list[ComparedPolicy]))


def print_comparison(console: Console, rows: Sequence[ComparedPolicy]) -> None:
    """The table for people, one a temperature."""
    for temperature in dict.fromkeys(row.temperature for row in rows):
        title = f"T = {temperature:g}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        names = (
            "method",
            "tok/s\n[95%]",
            "adj.",
            "pred.",
            "speed\nup",
            "tok /\nfwd",
            "rolled\nback",
            "unused",
            "wasted",
            "fwd /\ntok",
        )
        for name in names:
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)  # at most 80 wide
        here = [row for row in rows if row.temperature == temperature]
        for row in sorted(here, key=lambda row: row.speedup_over_autoregressive or 0.0):
            low, high = row.tokens_per_s_interval
            table.add_row(
                row.family,
                f"{row.tokens_per_s:.0f}\n\\[{low:.0f}, {high:.0f}]",
                "" if row.adjusted_tokens_per_s is None else f"{row.adjusted_tokens_per_s:.0f}",
                f"{row.predicted_tokens_per_s:.0f}",
                "" if row.speedup_over_autoregressive is None else f"{row.speedup_over_autoregressive:.2f}",
                f"{row.tokens_per_target_forward:.2f}",
                *(f"{rate:.0%}" if rate == rate else "-" for rate in (row.rollback_rate, row.wasted_draft_rate)),
                f"{row.wasted_target_rate:.0%}",
                f"{row.draft_forwards_per_token:.2f}",
            )
        console.print(table)
    if any(row.family == "prompt_lookup" for row in rows):
        console.print("prompt lookup ran apart, with autoregressive decoding of its own: its speed-up is what compares")
    for drift in filter(None, dict.fromkeys(drift_sentence(row.drift_range) for row in rows if row.drift_range)):
        console.print(drift)
    same = all(row.is_identical for row in rows)
    console.print(f"tokens and replayed rounds identical for every method: {'yes' if same else 'NO'}")
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        console.print(f"[red]{escape(reason)}[/red]")
    for note in dict.fromkeys(row.note for row in rows if row.note):
        console.print(f"[yellow]{escape(note)}[/yellow]")


def _rounds_of(measured: Run, policy: str, temperature: float) -> list[Any]:
    requests = measured.requests
    ids = requests.loc[(requests.policy == policy) & (requests.temperature == temperature), "request_id"]
    return [round_ for request_id in ids for round_ in measured.rounds_of(int(request_id))]

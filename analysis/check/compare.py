"""Every method on one pair, one machine, one set of prompts: measured beside predicted, with what each threw away."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from analysis.check.identity import compare_rounds
from analysis.check.predict import predict, speed_of
from analysis.study.candidates import (
    CALIBRATION_POLICIES,
    HRAD_CALIBRATION_POLICIES,
    LOOKUP_CALIBRATION_POLICIES,
    choose_lookup,
    choose_policies,
)
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import Run, read_run
from traces.folder.writer import check_new_folder
from traces.metrics.counts import count_rounds
from traces.metrics.speeds import measured_speeds
from traces.progress import Report, Stages, silent_stages
from traces.schema import RequestTrace

if TYPE_CHECKING:
    from executor.recording.recorder import RecordSettings


@dataclass(frozen=True, kw_only=True)
class ComparedPolicy:
    """One row of the table. Rollback in the three definitions of METHOD Q14: rejected / submitted draft tokens; drafted but
    never emitted / drafted; target positions that emitted nothing / all target positions."""

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


class Choose(Protocol):
    """Chooses a policy for each family, on traces of one temperature."""

    def __call__(
        self, traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report
    ) -> Mapping[str, Policy]:
        """Family -> policy."""
        ...


def compare_run(
    measured: Run, families: Mapping[float, Mapping[str, Policy]], traces: Sequence[RequestTrace], latency: LatencyModel
) -> list[ComparedPolicy]:
    """The table of a measured run: families[temperature][family] is the policy that ran for it."""
    speeds = measured_speeds(measured.requests, measured.rounds)
    identical = _identical_tokens(measured)
    replayed = compare_rounds(measured)
    rows = []
    for temperature, chosen in families.items():
        usable = [trace for trace in traces if trace.temperature == temperature]
        predicted = predict(list(dict.fromkeys(chosen.values())), usable, latency, seed=0).speeds
        for family, policy in chosen.items():
            label = label_of(policy)
            speed = speed_of(speeds, label, temperature)
            counts = count_rounds(_rounds_of(measured, label, temperature))
            rows.append(
                ComparedPolicy(
                    family=family,
                    policy=label,
                    temperature=temperature,
                    tokens_per_s=speed.tokens_per_s,
                    tokens_per_s_interval=speed.interval,
                    predicted_tokens_per_s=speed_of(predicted, label, temperature).tokens_per_s,
                    speedup_over_autoregressive=speed.speedup,
                    speedup_interval=speed.speedup_interval,
                    tokens_per_target_forward=counts.tokens_per_target_forward,
                    rollback_rate=counts.rejected_rate,
                    wasted_draft_rate=counts.wasted_draft_rate,
                    wasted_target_rate=counts.wasted_target_rate,
                    draft_forwards_per_token=counts.draft_forwards_per_token,
                    tokens_identical=identical[label, temperature],
                    rounds_identical=replayed.is_same(label, temperature),
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
    progress: Stages = silent_stages,
) -> list[ComparedPolicy]:
    """Record and calibrate on some prompts, choose each family's settings on the simulator, run all of them on others.

    progress(title) gives a context manager whose value takes (done, total). Writes recorded/ and compared/ run folders, and
    recorded_lookup/ and compared_lookup/ for prompt lookup, whose draft is another one: its speed-up is over autoregressive
    decoding in its own run. The table stands in summary.json under `comparison`.
    """
    from executor.recording.recorder import RecordSettings

    check_new_folder(output_dir)
    settings = RecordSettings(
        target=target,
        draft=draft,
        hrad=hrad,
        policies=CALIBRATION_POLICIES + (HRAD_CALIBRATION_POLICIES if hrad else ()),
        temperatures=tuple(temperatures),
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    lookup = replace(settings, draft="prompt_lookup", hrad="", policies=LOOKUP_CALIBRATION_POLICIES)
    found = _compare_pair(lookup, output_dir, "_lookup", choose_lookup, repeats=repeats, progress=progress)
    choose = partial(choose_policies, with_classes=bool(hrad), is_small=is_quick)
    rows = [row for row in found if row.family != "autoregressive"]
    rows = _compare_pair(settings, output_dir, "", choose, repeats=repeats, progress=progress, others=rows)
    table = {"comparison": read_run(output_dir / "compared").summary["comparison"]}
    (output_dir / "summary.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return rows


def _compare_pair(
    settings: RecordSettings,
    output_dir: Path,
    suffix: str,
    choose: Choose,
    *,
    repeats: int,
    progress: Stages,
    others: Sequence[ComparedPolicy] = (),
) -> list[ComparedPolicy]:
    """The comparison with one draft. others: rows that stand in the same table."""
    from executor.recording.recorder import open_session, record

    recorded_dir, compared_dir = (output_dir / f"{name}{suffix}" for name in ("recorded", "compared"))
    with open_session(settings) as session:
        with progress(f"recording with draft {settings.draft}") as report:
            recorded = record(settings, recorded_dir, session=session, progress=report)
        calibration = calibrate(recorded, seed=settings.seed)
        calibration.save(recorded_dir / "calibration.json")
        latency, traces = FittedLatency(calibration), recorded.traces()
        families = {}
        for temperature in settings.temperatures:
            usable = [trace for trace in traces if trace.temperature == temperature]
            with progress(f"choosing settings at T = {temperature:g}") as report:
                families[temperature] = choose(usable, latency, progress=report)
        labels = dict.fromkeys(label_of(policy) for chosen in families.values() for policy in chosen.values())
        rows: list[ComparedPolicy] = []

        def conclude(measured: Run) -> dict[str, object]:
            rows.extend([*compare_run(measured, families, traces, latency), *others])
            return {"comparison": [asdict(row) for row in rows]}

        measuring = replace(settings, policies=tuple(labels), skip_prompts=settings.num_prompts, repeats=repeats)
        wanted = {
            (label_of(policy), temperature) for temperature, chosen in families.items() for policy in chosen.values()
        }
        with progress("measuring") as report:
            record(
                measuring,
                compared_dir,
                session=session,
                progress=report,
                conclude=conclude,
                wants=lambda label, request: (label, request.sampling.temperature) in wanted,
            )
    return rows


def print_comparison(console: Console, rows: Sequence[ComparedPolicy]) -> None:
    """The table for people, one a temperature."""
    for temperature in dict.fromkeys(row.temperature for row in rows):
        table = Table(title=f"T = {temperature:g}", title_justify="left", box=None, pad_edge=False)
        names = ("method", "tok/s [95%]", "predicted", "speed-up", "tok/fwd", "rollback", "unused", "wasted", "fwd/tok")
        for name in names:
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name != "method")
        here = [row for row in rows if row.temperature == temperature]
        for row in sorted(here, key=lambda row: row.speedup_over_autoregressive or 0.0):
            low, high = row.tokens_per_s_interval
            table.add_row(
                row.family,
                f"{row.tokens_per_s:.0f} \\[{low:.0f}, {high:.0f}]",
                f"{row.predicted_tokens_per_s:.0f}",
                "" if row.speedup_over_autoregressive is None else f"{row.speedup_over_autoregressive:.2f}",
                f"{row.tokens_per_target_forward:.2f}",
                *(f"{rate:.0%}" if rate == rate else "-" for rate in (row.rollback_rate, row.wasted_draft_rate)),
                f"{row.wasted_target_rate:.0%}",
                f"{row.draft_forwards_per_token:.2f}",
            )
        console.print(table)
    same = all(row.tokens_identical and row.rounds_identical for row in rows)
    if any(row.family == "prompt_lookup" for row in rows):
        console.print("prompt lookup ran apart, with autoregressive decoding of its own: its speed-up is what compares")
    console.print(f"tokens and replayed rounds identical for every method: {'yes' if same else 'NO'}")


def _identical_tokens(measured: Run) -> dict[tuple[str, float], bool]:
    """Whether a policy's tokens are the baseline's on every prompt."""
    requests = measured.requests
    plain = requests[requests.policy == "autoregressive"].drop_duplicates(["prompt_id", "temperature"])
    joined = requests.merge(
        plain[["prompt_id", "temperature", "tokens_sha256"]], on=["prompt_id", "temperature"], suffixes=("", "_plain")
    )
    joined["same"] = joined.tokens_sha256 == joined.tokens_sha256_plain
    same = joined.groupby(["policy", "temperature"]).same.all().reset_index()
    return {
        (str(policy), float(temperature)): bool(value)
        for policy, temperature, value in same.itertuples(index=False, name=None)
    }


def _rounds_of(measured: Run, policy: str, temperature: float) -> list[Any]:
    requests = measured.requests
    ids = requests.loc[(requests.policy == policy) & (requests.temperature == temperature), "request_id"]
    return [turn for request_id in ids for turn in measured.rounds_of(int(request_id))]

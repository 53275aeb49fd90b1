"""The table of a comparison: a row for each method, measured beside predicted, with what it threw away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.check.reports import read_report, typed_report
from analysis.check.validation import Validation
from analysis.tuning.search import Chosen
from analysis.tuning.what_if import Simulated
from sim.decoding.policies.catalog import label_of
from traces.folder.run import Run
from traces.metrics.counts import count_rounds
from traces.metrics.machine_speed import drift_sentence

COMPARISON = "comparison"


@dataclass(frozen=True, kw_only=True)
class ComparedPolicy:
    """One row of the table. Rollback in the three definitions of METHOD Q14: rejected / submitted draft tokens; drafted but
    never emitted / drafted; target positions that emitted nothing / all target positions. Speed-ups are of adjusted
    times (`traces.metrics.machine_speed`), except in old reports, which have no adjusted speeds. note: why the times of its
    run support no claim. reason: why tokens or rounds of its run are not identical. limits: settings that stand at the end
    of what was tried, so that others beyond may be better. same_policy_difference: how far two measurements of the baseline,
    taken in turns, are apart in its run. remark: a sentence on why it stands here in another one's place."""

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
    limits: tuple[str, ...] = ()
    same_policy_difference: float | None = None
    remark: str = ""

    @property
    def is_identical(self) -> bool:
        """Whether its tokens and its rounds are those that they should be."""
        return self.tokens_identical and self.rounds_identical


def compared_policies(
    measured: Run, validation: Validation, families: Mapping[float, Mapping[str, Chosen]]
) -> list[ComparedPolicy]:
    """The table of a measured run: families[temperature][family] is the choice that ran for it."""
    checks = {(check.policy, check.temperature): check for check in validation.policies}
    rows = []
    for temperature, chosen in families.items():
        for family, choice in chosen.items():
            label = label_of(choice.policy)
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
                    same_policy_difference=validation.same_policy_difference,
                    limits=choice.limits,
                    remark=choice.remark,
                )
            )
    return rows


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


def print_comparison(console: Console, rows: Sequence[ComparedPolicy], simulated: Sequence[Simulated] = ()) -> None:
    """The table for people, one a temperature. simulated: methods that were predicted only, marked as such."""
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
            "rej./\nsubm.",
            "lost/\ndraft",
            "lost/\npos.",
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
        for predicted in (row for row in simulated if row.temperature == temperature):
            table.add_row(
                _simulated_name(predicted),
                "-",
                "-",
                f"{predicted.tokens_per_s:.0f}",
                f"{predicted.speedup:.2f}",
                f"{predicted.tokens_per_target_forward:.2f}",
                *("-",) * 3,
                f"{predicted.draft_forwards_per_token:.2f}",
            )
        console.print(table)
    console.print(
        "adj.: adjusted to the machine's median speed; pred.: predicted. tok/fwd: tokens a target forward gives (vLLM: mean "
        "acceptance length). rej./subm.: rejected of the submitted draft tokens; lost/draft: drafted tokens that were never "
        "emitted; lost/pos.: verified positions that emitted nothing. fwd/tok: draft forwards a token.",
        style="dim",
        highlight=False,
    )
    if any(row.family == "prompt_lookup" for row in rows):
        console.print("prompt lookup ran apart, with autoregressive decoding of its own: its speed-up is what compares")
    for drift in filter(None, dict.fromkeys(drift_sentence(row.drift_range) for row in rows if row.drift_range)):
        console.print(drift)
    differences = [row.same_policy_difference for row in rows if row.same_policy_difference is not None]
    if differences:
        console.print(f"plain decoding, measured twice in turns, differs from itself by {max(differences):.1%}")
    same = all(row.is_identical for row in rows)
    console.print(f"tokens and replayed rounds identical for every method: {'yes' if same else 'NO'}")
    for row in rows:
        for limit in row.limits:
            console.print(f"{row.family} at T = {row.temperature:g} may do better: {limit}", highlight=False)
    for row in rows:
        if row.remark:
            console.print(f"T = {row.temperature:g}: {row.remark}", highlight=False)
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        console.print(f"[red]{escape(reason)}[/red]")
    for note in dict.fromkeys(row.note for row in rows if row.note):
        console.print(f"[yellow]{escape(note)}[/yellow]")


def _simulated_name(row: Simulated) -> str:
    """On two lines, of which neither is long."""
    if row.num_servers > 1:
        return f"{row.family} (simulated,\n{row.num_servers} targets)"
    return row.family.replace(", ", ",\n") + f" ({row.kind})"


def _rounds_of(measured: Run, policy: str, temperature: float) -> list[Any]:
    requests = measured.requests
    ids = requests.loc[(requests.policy == policy) & (requests.temperature == temperature), "request_id"]
    return [round_ for request_id in ids for round_ in measured.rounds_of(int(request_id))]

"""SpecBranch without each of its parts, and along its two settings: what each is worth on one pair (the paper's ablation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from analysis.check.reports import read_report, typed_report
from analysis.tuning.measured import Measured
from analysis.tuning.search import Chosen
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from sim.latency.base import LatencyModel
from sim.sweep.sweep import sweep
from traces.schema import RequestTrace

ABLATION = "ablation"
BRANCHES = (1, 2, 3, 4, 6, 8)
EPSILONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the largest probability, the paper's signal
AS_CHOSEN = "as chosen"
_WAYS = ("specbranch", "specbranch without H-RAD")


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """SpecBranch with one change, simulated. rollback: drafted but never emitted / drafted."""

    temperature: float
    change: str
    policy: str
    speedup: float
    tokens_per_target_forward: float
    rollback: float
    draft_forwards_per_token: float


def changes(base: SpecBranch, measured: Measured) -> dict[str, SpecBranch]:
    """What is changed -> the policy: one thing at a time, as far as the traces can answer for it."""
    changed = {AS_CHOSEN: base, "no branches": replace(base, max_branches=1)}
    if base.uses_hrad:
        changed["no H-RAD"] = replace(base, uses_hrad=False)
    changed["fixed number of branches"] = replace(base, is_fixed_count=True)
    changed["fixed length"] = replace(base, epsilon=0.0, signal=ConfidenceSignal.MAX_PROB)
    changed |= {f"k_max = {count}": replace(base, max_branches=count) for count in BRANCHES}
    changed |= {
        f"epsilon = {value:g}": replace(base, epsilon=value, signal=ConfidenceSignal.MAX_PROB) for value in EPSILONS
    }
    return {name: policy for name, policy in changed.items() if measured.answers(policy)}


def ablate(traces: Sequence[RequestTrace], latency: LatencyModel, chosen: Mapping[str, Chosen]) -> list[Ablated]:
    """The faster of SpecBranch's two forms, changed in one thing at a time, on traces of one temperature. chosen: family ->
    its choice; nothing where SpecBranch is not among them."""
    ways = [chosen[name] for name in _WAYS if name in chosen]
    if not ways:
        return []
    base = max(ways, key=lambda choice: choice.tokens_per_s).policy
    assert isinstance(base, SpecBranch)
    changed = changes(base, Measured.of(traces, latency))
    swept = sweep([Autoregressive(), *changed.values()], traces, latency)
    speeds = swept.decode_tokens_per_s
    rows = []
    for index, (change, policy) in enumerate(changed.items(), start=1):
        counts = swept.summary(index)
        rows.append(
            Ablated(
                temperature=traces[0].temperature,
                change=change,
                policy=label_of(policy),
                speedup=float(speeds[index] / speeds[0]),
                tokens_per_target_forward=counts.tokens_per_target_forward,
                rollback=counts.wasted_draft_rate,
                draft_forwards_per_token=counts.draft_forwards_per_token,
            )
        )
    return rows


def read_ablation(folder: Path) -> list[Ablated]:
    """What stands in a folder of `compare`; nothing in one of an earlier version. Raises `RunError` for a broken file."""
    if not (folder / f"{ABLATION}.json").is_file():
        return []
    return typed_report(folder, ABLATION, read_report(folder, ABLATION), TypeAdapter(list[Ablated]))


def by_change(rows: Sequence[Ablated]) -> dict[str, list[Ablated | None]]:
    """Change -> a row for each temperature, in the order in which they come; None where it was not tried."""
    cells = {(row.change, row.temperature): row for row in rows}
    temperatures = dict.fromkeys(row.temperature for row in rows)
    return {
        change: [cells.get((change, temperature)) for temperature in temperatures]
        for change in dict.fromkeys(row.change for row in rows)
    }


def print_ablation(console: Console, rows: Sequence[Ablated]) -> None:
    """One table, a column a temperature."""
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    if not rows:
        return
    table = Table(
        title="SpecBranch with one thing changed", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("change")
    for temperature in temperatures:
        table.add_column(f"T = {temperature:g}", justify="right")
    for change, here in by_change(rows).items():
        table.add_row(change, *("-" if row is None else f"{row.speedup:.2f} ({row.rollback:.0%})" for row in here))
    console.print(table)
    console.print(
        "predicted speed-up over plain decoding (share of drafted tokens that are never emitted)", style="dim"
    )
    for base in (row for row in rows if row.change == AS_CHOSEN):
        console.print(f"{AS_CHOSEN} at T = {base.temperature:g}: {base.policy}", highlight=False, soft_wrap=True)

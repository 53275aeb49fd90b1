"""The same traces at other costs, every method with settings chosen anew; and what only a simulator can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from analysis.check.reports import read_report, typed_report
from analysis.tuning.choosing import AUTO_TRIED, choose_policies
from analysis.tuning.measured import Measured, first_requests, typical_context
from analysis.tuning.oracles import oracles
from sim.decoding.closed_forms import dsi_servers
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.dsi import Dsi, simulate_dsi
from sim.latency.base import LatencyModel
from sim.latency.placement import AdjustedLatency, cost_ratio_of
from sim.latency.widening import LinearVerification
from sim.sweep.sweep import sweep
from traces.progress import Report, silent
from traces.schema import RequestTrace

WHAT_IF = "what_if"
COST_RATIOS = (6.0, 12.0)
WIDENINGS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # what a further verified token costs, in target forwards
MAX_TOKENS = 1500  # of the traces
MAX_SERVERS = 8  # target servers of DSI
_LOOKAHEADS = (1, 2, 3, 4, 6, 8, 12, 16)
AS_MEASURED, FLAT = "measured", "flat"
_SHORT = {
    "specbranch without H-RAD": "specbranch, no H-RAD",
    "specbranch without branches": "specbranch, 1 branch",
    "specbranch without branches and H-RAD": "specbranch, 1 branch, no H-RAD",
    "specbranch without H-RAD, fixed count": "specbranch, fixed k, no H-RAD",
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One condition: predicted speed-ups over plain decoding under the same costs, by family, and the settings chosen for
    them.

    cost_ratio: target forward / draft forward. widening: of verification, in target forwards a token; None as measured.
    """

    temperature: float
    name: str
    cost_ratio: float
    widening: float | None
    speedups: dict[str, float]
    policies: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A method that runs on no executor here, or that knows what nobody can: predicted only. num_servers: targets that verify
    at once."""

    temperature: float
    family: str
    settings: str
    num_servers: int
    tokens_per_s: float
    speedup: float
    tokens_per_target_forward: float
    draft_forwards_per_token: float

    @property
    def kind(self) -> str:
        """How it stands in a table."""
        return "simulated" if self.num_servers == 1 else f"simulated, {self.num_servers} targets"


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What a comparison would have been elsewhere.

    stops_paying: by temperature (as text) and family, the widening from which on plain decoding is as fast, at the measured
    cost ratio; None where it pays at a whole target forward a token still.
    """

    costs: list[Costs]
    simulated: list[Simulated]
    stops_paying: dict[str, dict[str, float | None]]

    def shown(self, temperature: float) -> list[Costs]:
        """The conditions for people, as measured first; the widenings are told by where each method stops paying."""
        here = (cost for cost in self.costs if cost.temperature == temperature)
        return [cost for cost in here if not cost.name.startswith("widening")]

    def pays_up_to(self, temperature: float) -> dict[str, str] | None:
        """Family -> the widening up to which it pays, as text; None where nobody asked."""
        stops = self.stops_paying.get(f"{temperature:g}")
        if stops is None:
            return None
        return {
            family: f"> {WIDENINGS[-1]:g}" if stops.get(family) is None else f"{stops[family]:.2f}"
            for family in self.shown(temperature)[0].speedups
        }


def what_if(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, is_quick: bool = False, progress: Report = silent
) -> WhatIf:
    """Conditions on traces of one temperature. is_quick: flat verification at the measured cost ratio alone."""
    used = first_requests(traces, MAX_TOKENS)
    temperature, context = used[0].temperature, typical_context(used)
    measured_ratio = cost_ratio_of(latency, context)
    conditions: list[tuple[str, float, float | None]] = [
        (AS_MEASURED, measured_ratio, None),
        (FLAT, measured_ratio, 0.0),
    ]
    if not is_quick:
        conditions += [(f"{FLAT}, c = {ratio:g}", ratio, 0.0) for ratio in COST_RATIOS]
        conditions += [(f"widening {widening:g}", measured_ratio, widening) for widening in WIDENINGS]
    costs = []
    for index, (name, ratio, widening) in enumerate(conditions):
        elsewhere = _at(latency, measured_ratio / ratio, widening)
        chosen = choose_policies(used, elsewhere, max_tried=AUTO_TRIED)
        plain = chosen["autoregressive"].tokens_per_s
        costs.append(
            Costs(
                temperature=temperature,
                name=name,
                cost_ratio=ratio,
                widening=widening,
                speedups={family: choice.tokens_per_s / plain for family, choice in chosen.items()},
                policies={family: label_of(choice.policy) for family, choice in chosen.items()},
            )
        )
        progress(index + 1, len(conditions))
    return WhatIf(
        costs=costs,
        simulated=[dsi(used, latency, Measured.of(used, latency)), *knowing(used, latency)],
        stops_paying={} if is_quick else {f"{temperature:g}": stops_paying(costs)},
    )


def dsi(traces: Sequence[RequestTrace], latency: LatencyModel, measured: Measured) -> Simulated:
    """Distributed speculative inference at its best lookahead, with as many target servers as keep up, MAX_SERVERS at most;
    one of them decodes without speculation."""
    runs = []
    for lookahead in _LOOKAHEADS:
        num_servers = min(MAX_SERVERS, 1 + int(dsi_servers(lookahead, measured.cost_ratio)))
        settings = Dsi(lookahead=lookahead, num_servers=max(2, num_servers))
        runs.append((settings, simulate_dsi(settings, traces, latency)))
    settings, best = max(runs, key=lambda run: run[1].tokens_per_s)
    plain_s = measured.serial_verify_s[0] + measured.host_s
    return Simulated(
        temperature=traces[0].temperature,
        family="dsi",
        settings=f"lookahead={settings.lookahead}",
        num_servers=settings.num_servers,
        tokens_per_s=best.tokens_per_s,
        speedup=best.tokens_per_s * plain_s,
        tokens_per_target_forward=best.num_tokens / best.num_forwards,
        draft_forwards_per_token=best.num_drafted / best.num_tokens,
    )


def knowing(traces: Sequence[RequestTrace], latency: LatencyModel) -> list[Simulated]:
    """SpecBranch with the oracles of classes and of positions, as `specbranch hrad ceiling` has them."""
    rows = []
    for oracle in oracles(traces, latency):
        swept = sweep([Autoregressive(), oracle.choice.policy], oracle.traces, latency)
        speeds, counts = swept.decode_tokens_per_s, swept.summary(1)
        rows.append(
            Simulated(
                temperature=traces[0].temperature,
                family=oracle.name,
                settings=label_of(oracle.choice.policy),
                num_servers=1,
                tokens_per_s=float(speeds[1]),
                speedup=float(speeds[1] / speeds[0]),
                tokens_per_target_forward=counts.tokens_per_target_forward,
                draft_forwards_per_token=counts.draft_forwards_per_token,
            )
        )
    return rows


def stops_paying(costs: Sequence[Costs]) -> dict[str, float | None]:
    """By family: the widening at which its speed-up has fallen to 1, between the conditions on a line; None if at none of
    them, 0 where it does not pay with flat verification either."""
    line = sorted(
        (cost for cost in costs if cost.widening is not None and cost.cost_ratio == costs[0].cost_ratio),
        key=lambda cost: cost.widening or 0.0,
    )
    found: dict[str, float | None] = {}
    for family in line[0].speedups:
        points = [(cost.widening or 0.0, cost.speedups[family]) for cost in line]
        found[family] = None
        if points[0][1] <= 1:
            found[family] = 0.0
            continue
        for (before, high), (after, low) in pairwise(points):
            if low <= 1:
                found[family] = round(before + (after - before) * (high - 1) / max(high - low, 1e-12), 3)
                break
    return found


def merged(parts: Sequence[WhatIf]) -> WhatIf:
    """Of all temperatures."""
    return WhatIf(
        costs=[cost for part in parts for cost in part.costs],
        simulated=[row for part in parts for row in part.simulated],
        stops_paying={key: value for part in parts for key, value in part.stops_paying.items()},
    )


def read_what_if(folder: Path) -> WhatIf:
    """What stands in a folder of `compare`. Raises `RunError` if there is none."""
    return typed_report(folder, WHAT_IF, read_report(folder, WHAT_IF), TypeAdapter(WhatIf))


def print_what_if(console: Console, found: WhatIf) -> None:
    """A table a temperature: predicted speed-ups here and at other costs, and how dear verification may become."""
    for temperature in dict.fromkeys(cost.temperature for cost in found.costs):
        shown, stops = found.shown(temperature), found.pays_up_to(temperature)
        table = Table(
            title=f"Predicted speed-ups at other costs, T = {temperature:g}",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method")
        for cost in shown:
            table.add_column(cost.name.replace(", ", "\n"), justify="right")
        if stops is not None:
            table.add_column("pays up to\na token", justify="right")
        for family in sorted(shown[0].speedups, key=lambda name: shown[0].speedups[name]):
            if family == "autoregressive":
                continue
            cells = [f"{cost.speedups[family]:.2f}" for cost in shown]
            if stops is not None:
                cells.append(stops[family])
            table.add_row(_SHORT.get(family, family), *cells)
        console.print(table)
        console.print(
            f"c = {shown[0].cost_ratio:.1f} here; flat: verifying many tokens takes as long as one; settings are chosen anew."
            + (" pays up to: a further verified token may cost so many target forwards." if stops is not None else ""),
            highlight=False,
        )


def _at(latency: LatencyModel, draft_factor: float, widening: float | None) -> LatencyModel:
    """Latencies with the draft's forwards scaled and another widening."""
    model: LatencyModel = latency if draft_factor == 1 else AdjustedLatency(latency, draft_factor)
    return model if widening is None else LinearVerification(model, widening)

"""A comparison's methods at other costs, and SpecBranch without each of its parts: what the simulator says, as tables."""

from __future__ import annotations

from analysis.report.elements import Element, Section, Table
from analysis.report.material import Arm
from analysis.tuning.ablation import by_change
from analysis.tuning.what_if import Costs, WhatIf


def elsewhere_section(arm: Arm) -> Section | None:
    """Nothing for folders that are no comparison's."""
    elements: list[Element] = []
    if arm.elsewhere is not None:
        for temperature in dict.fromkeys(cost.temperature for cost in arm.elsewhere.costs):
            elements.append(_costs_table(arm.elsewhere, temperature))
    if arm.ablated:
        elements.append(_ablation_table(arm))
    if not elements:
        return None
    return Section(
        name="elsewhere",
        title="The same methods at other costs",
        lead="Predicted on the recorded traces, settings chosen anew at each cost: elsewhere another method may win.",
        elements=elements,
    )


def _costs_table(found: WhatIf, temperature: float) -> Table:
    shown, stops = found.shown(temperature), found.pays_up_to(temperature)
    families = sorted(shown[0].speedups, key=lambda family: -shown[0].speedups[family])
    rows = [
        [family, *(f"{cost.speedups[family]:.2f}" for cost in shown), *([] if stops is None else [stops[family]])]
        for family in families
        if family != "autoregressive"
    ]
    rows += [
        [f"{row.family} ({row.kind})", f"{row.speedup:.2f}", *("-",) * (len(rows[0]) - 2)]
        for row in found.simulated
        if row.temperature == temperature
    ]
    return Table(
        title=f"T = {temperature:g}",
        columns=["method", *map(_name, shown), *([] if stops is None else ["pays up to"])],
        rows=rows,
        note=f"Speed-ups over plain decoding under the same costs; c = {shown[0].cost_ratio:.1f} here. Flat: verifying many "
        "tokens takes as long as one. Pays up to: a further verified token may cost so many target forwards.",
    )


def _name(cost: Costs) -> str:
    return "as measured" if cost.widening is None else cost.name


def _ablation_table(arm: Arm) -> Table:
    temperatures = list(dict.fromkeys(row.temperature for row in arm.ablated))
    rows = []
    for change, here in by_change(arm.ablated).items():
        texts = (("-", "-") if row is None else (f"{row.speedup:.2f}", f"{row.rollback:.0%}") for row in here)
        rows.append([change, *(text for pair in texts for text in pair)])
    names = [(f"speed-up, T = {temperature:g}", f"rollback, T = {temperature:g}") for temperature in temperatures]
    return Table(
        title="SpecBranch with one thing changed",
        columns=["change", *(name for pair in names for name in pair)],
        rows=rows,
        note="Predicted. Rollback: drafted tokens that were never emitted, of all that were drafted.",
    )

"""The paper's tables under acceptance that is partly known, for people: what was fitted, what held, what is out of reach."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.papers.informed import (
    ABLATED,
    ABLATION,
    EPSILONS,
    FITTED_DATASET,
    NATS,
    ROLLBACK,
    ROLLED_BACK,
    TABLE_4,
    InformedTables,
)

OUT_OF_REACH = (
    "Out of reach without a large pair: how many layers H-RAD should read (the paper's K), energy, and tokens/s."
)


def informed_rows(tables: InformedTables) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title -> head and rows of each table, as text."""
    ablation, (epsilon, kept) = tables.ablation, tables.ablation.end
    ratios = [
        [ratio.pair, ratio.dataset, f"{ratio.published:.2f}", f"{ratio.predicted:.2f}", f"{ratio.error:+.1%}", use]
        for ratio in tables.ratios
        for use in ("fitted" if ratio.is_fitted else "held back",)
    ]
    ablated = [
        [name, f"{published:.2f}", f"{ablation.speedups[name][0]:.2f}", f"{ablation.errors[name]:+.1%}"]
        for name, published in ABLATION.items()
    ]
    sweep = [
        [f"{value:g}", *(f"{ablation.speedups[name][index]:.2f}" for name in ABLATION)]
        for index, value in enumerate(EPSILONS)
    ]
    definitions = list(next(iter(tables.rollback.values())))
    rollback = [["published", *(f"{rate:.1%}" for rate in ROLLBACK.values())]]
    rollback += [[name, *(f"{tables.rollback[method][name]:.1%}" for method in ROLLBACK)] for name in definitions]
    knew = [[f"{nats:g}", f"{speed:.2f}"] for nats, speed in zip(NATS, ablation.by_nats, strict=False)]
    first, last = TABLE_4["H-RAD"]
    return {
        "SpecBranch / PEARL": (["pair", "data", "published", "model", "error", "used"], ratios),
        f"Ablation of H-RAD, {', '.join(ABLATED)} (held back)": (
            ["decided by", "published", "model", "error"],
            ablated,
        ),
        (
            f"Speed-up over epsilon; where confidence alone has lost 64 -> 49, at {epsilon:.2f}, H-RAD keeps {kept:.0%} "
            f"({last / first:.0%} published, fitted)"
        ): (["epsilon", *ABLATION], sweep),
        f"Rollback, {', '.join(ROLLED_BACK)}": (["definition", "SpS", "PEARL", "SpecBranch"], rollback),
        "What a prediction must tell of the class, and what that brings": (["nats", "speed-up"], knew),
    }


def informed_verdicts(tables: InformedTables) -> list[str]:
    """What to take from the tables, one sentence each."""
    knowledge, ablation = tables.knowledge, tables.ablation
    reject, some, accept = ablation.shares
    held, fitted = (tables.mean_error(is_fitted=is_fitted) for is_fitted in (False, True))
    return [
        f"SpecBranch over PEARL: mean error {held:.1%} on the eight cells held back, {fitted:.1%} on the four of "
        f"{FITTED_DATASET} that were fitted, besides the shape of Table 4.",
        f"Parameters: confidence spreads the logit of acceptance by {knowledge.confidence_sd:.2f}, neighbouring positions are "
        f"correlated {knowledge.persistence:.2f}, the draft reports {-knowledge.confidence_shift:.1f} less than that logit.",
        f"H-RAD must have known the class (none {reject:.0%}, some {some:.0%}, all {accept:.0%}) {knowledge.known:.0%} of the "
        f"time, and called {knowledge.boldness:.0%} of the windows that it left open accepted: right {ablation.accuracy:.0%} "
        f"of the time, {ablation.nats:.2f} nats a prediction.",
        _fits_of_rollback(tables),
        OUT_OF_REACH,
    ]


def _fits_of_rollback(tables: InformedTables) -> str:
    """Which definition comes closest to each published rate."""
    nearest = {
        method: min(rates, key=lambda name: abs(rates[name] - ROLLBACK[method]))  # used at once
        for method, rates in tables.rollback.items()
    }
    return (
        f"Rollback: {ROLLBACK['pearl']:.1%} of PEARL is nearest to '{nearest['pearl']}', {ROLLBACK['specbranch']:.1%} of "
        f"SpecBranch to '{nearest['specbranch']}'; no single definition gives both."
    )


def informed_record(tables: InformedTables) -> dict[str, Any]:
    """Plain values for summary.json."""
    return {
        "knowledge": asdict(tables.knowledge),
        "mean_error_held_back": tables.mean_error(is_fitted=False),
        "mean_error_fitted": tables.mean_error(is_fitted=True),
        "ratios": [{**asdict(ratio), "error": ratio.error} for ratio in tables.ratios],
        "ablation": {**asdict(tables.ablation), "epsilons": EPSILONS, "errors": tables.ablation.errors},
        "rollback": {method: dict(rates) for method, rates in tables.rollback.items()},
    }


def print_informed(console: Console, tables: InformedTables) -> None:
    """The verdicts and the tables, whole at 80 columns."""
    for sentence in informed_verdicts(tables):
        console.print(sentence)
    for title, (head, rows) in informed_rows(tables).items():
        console.print(f"\n[bold]{title}[/bold]")  # a table's own title would be folded to its width
        table = Table(box=None, pad_edge=False)
        for index, name in enumerate(head):
            table.add_column(name, justify="left" if index == 0 or name in ("data", "used") else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)

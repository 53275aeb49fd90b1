"""The published command: simulate, write a page, a figure and summary.json, and print the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.cli.progress import progress_bar
from analysis.papers.published import Effort, PublishedRow, as_record, map_of_methods, simulate_published
from analysis.papers.report import draw_maps, print_published, published_page
from traces.folder.writer import RunWriter, check_new_folder

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COST_RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
BRANCH_COSTS = {"branches are free": 0.0, "each further branch adds 10% to a draft forward": 0.1}


def publish_and_print(console: Console, output_dir: Path, effort: Effort) -> None:
    """Everything at its usual size."""
    rows = write_published(output_dir, effort, progress=lambda title: progress_bar(console, title))
    print_published(console, rows)
    console.print(f"what explains the differences, and where each method wins: {output_dir}/published.md")
    console.print(f"figure: {output_dir}/where_each_wins.png")


def write_published(
    output_dir: Path,
    effort: Effort,
    *,
    alphas: Sequence[float] = ALPHAS,
    cost_ratios: Sequence[float] = COST_RATIOS,
    progress: Callable[[str], Any],
) -> list[PublishedRow]:
    """Writes a new folder. progress(title) gives a context manager whose value takes (done, total)."""
    check_new_folder(output_dir)
    with progress("published points") as report:
        rows = simulate_published(effort, progress=report)
    with progress("over speed ratio and acceptance") as report:
        tables = map_of_methods(alphas, cost_ratios, effort, branch_costs=tuple(BRANCH_COSTS.values()), progress=report)
    maps = dict(zip(BRANCH_COSTS, tables, strict=True))
    config = {**asdict(effort), "alphas": list(alphas), "cost_ratios": list(cost_ratios)}
    with RunWriter(output_dir, config=config, meta={"kind": "published"}) as writer:
        (output_dir / "published.md").write_text(published_page(rows, maps), encoding="utf-8")
        draw_maps(output_dir / "where_each_wins.png", maps)
        writer.finish(
            {
                "published": [as_record(row) for row in rows],
                "where_each_wins": {title: table.to_dict("records") for title, table in maps.items()},
            }
        )
    return rows

"""The published operating points for people: a folder with a page in Markdown, figures of where each method wins, and a
summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.figures.plots import NAMES, break_even_map
from analysis.figures.saving import save_figure
from analysis.papers.informed import FITTED, InformedTables, Knowledge, informed_tables
from analysis.papers.informed_report import informed_record, informed_rows, informed_verdicts
from analysis.papers.maps import winners
from analysis.papers.published import METHODS, Effort, PublishedRow, as_record, map_of_methods, simulate_published
from traces.files import write_text
from traces.folder.writer import RunWriter, check_new_folder
from traces.progress import Stages, silent_stages

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COST_RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
BRANCH_COSTS = {"branches are free": 0.0, "each further branch adds 10% to a draft forward": 0.1}
ON_ONE_TARGET = tuple(method for method in METHODS if method != "dsi")
RIVALS = tuple(method for method in ON_ONE_TARGET if method != "outcome_hedging")
SPECULATIVE = tuple(method for method in METHODS if method != "autoregressive")


def write_published(
    output_dir: Path,
    effort: Effort,
    *,
    alphas: Sequence[float] = ALPHAS,
    cost_ratios: Sequence[float] = COST_RATIOS,
    knowledge: Knowledge = FITTED,
    progress: Stages = silent_stages,
) -> tuple[list[PublishedRow], InformedTables]:
    """Simulate everything and write a new folder; ValueError if it holds something. knowledge: of the informed tables."""
    check_new_folder(output_dir)
    with progress("published points") as report:
        rows = simulate_published(effort, progress=report)
    with progress("with informed signals") as report:
        informed = informed_tables(effort, knowledge, progress=report)
    with progress("over speed ratio and acceptance") as report:
        tables = map_of_methods(alphas, cost_ratios, effort, branch_costs=tuple(BRANCH_COSTS.values()), progress=report)
    maps = dict(zip(BRANCH_COSTS, tables, strict=True))
    config = {**asdict(effort), "alphas": list(alphas), "cost_ratios": list(cost_ratios)}
    with RunWriter(output_dir, config=config, meta={"kind": "published"}) as writer:
        write_text(output_dir / "published.md", published_page(rows, maps, informed))
        draw_maps(output_dir / "where_each_wins.png", maps)
        writer.finish(
            {
                "published": [as_record(row) for row in rows],
                "informed": informed_record(informed),
                "where_each_wins": {title: table.to_dict("records") for title, table in maps.items()},
            }
        )
    return rows, informed


def print_published(console: Console, rows: Sequence[PublishedRow]) -> None:
    """Simulated speed-ups, the published ones in brackets."""
    table = Table(title="Speed-up over autoregressive, simulated (published)", title_justify="left", box=None)
    for name in ("pair", "data", "c", "alpha", *(NAMES.get(method, method) for method in SPECULATIVE)):
        table.add_column(name, justify="left" if name in ("pair", "data") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(
        "c: a target forward takes so many draft forwards. alpha: chance that a draft token is accepted. In brackets: "
        "published.",
        style="dim",
        highlight=False,
    )


def published_page(
    rows: Sequence[PublishedRow], maps: Mapping[str, pd.DataFrame], informed: InformedTables | None = None
) -> str:
    """Everything that was simulated. maps: title -> table of `analysis.papers.published.map_of_methods`."""
    head = ("pair", "data", "c", "alpha", *(NAMES.get(method, method) for method in SPECULATIVE))
    lines = [
        "# Published operating points, simulated",
        "Speed-ups over autoregressive decoding, simulated; the published ones in brackets. Acceptance is geometric, as "
        "the published speed-ups imply it; half of the rejected tokens are the draft's second choice, a quarter its third, "
        "and so on. Two devices, forwards of constant time, free branches, no overheads; each method at its best settings. "
        "DSI alone has several target servers. Rules that stop by confidence have nothing to read here. Requests are short "
        "and end within a window, so that PEARL stays a few per cent below the endless text that its acceptance was "
        "worked out for.",
        *_markdown(head, [_cells(row) for row in rows]),
        "",
        "## What explains the differences",
        *(f"- {row.point.pair}, {row.point.dataset}: {row.explained}" for row in rows),
    ]
    if informed is not None:
        lines += ["", "## SpecBranch with informed signals", *(f"- {text}" for text in informed_verdicts(informed))]
        for title, (names, cells) in informed_rows(informed).items():
            lines += ["", f"### {title}", *_markdown(names, cells)]
    for title, table in maps.items():
        lines += [
            "",
            f"## Where each method wins: {title}",
            "The fastest published method with one target, and in brackets the speed-ups of outcome hedging, which equals "
            "it where it chooses that method as its special case, and of DSI, which takes more targets.",
            *_markdown(*_winner_cells(table)),
        ]
    return "\n".join(lines) + "\n"


def draw_maps(path: Path, maps: Mapping[str, pd.DataFrame]) -> Path:
    """A row for each map: the published methods with one target, those and ours, all with DSI."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = (("published, one target", RIVALS), ("and outcome hedging", ON_ONE_TARGET), ("and DSI", METHODS))
    figure = Figure(figsize=(4.8 * len(panels), 4.0 * len(maps)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(maps), len(panels), squeeze=False)
    for (title, table), line in zip(maps.items(), grid, strict=True):
        for (name, methods), axes in zip(panels, line, strict=True):
            break_even_map(axes, winners(table[table.method.isin(methods)]))
            axes.set_title(f"{title}: {name}", fontsize=9)
    save_figure(figure, path)
    return path


def _cells(row: PublishedRow) -> list[str]:
    point = row.point
    values = [
        f"{row.simulated[method]:.2f}" + (f" ({point.reported[method]:.2f})" if method in point.reported else "")
        for method in SPECULATIVE
    ]
    return [point.pair, point.dataset, f"{point.cost_ratio:.1f}", f"{point.alpha:.3f}", *values]


def _winner_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of winners: acceptance down, speed ratio across."""
    won = winners(table[table.method.isin(RIVALS)]).set_index(["alpha", "cost_ratio"])
    speeds = table.pivot_table(index=["alpha", "cost_ratio"], columns="method", values="speedup")
    alphas, ratios = (sorted(table[name].unique()) for name in ("alpha", "cost_ratio"))
    rows = []
    for alpha in alphas:
        cells = [f"{alpha:g}"]
        for ratio in ratios:
            best, speed = str(won.method[alpha, ratio]), float(won.speedup[alpha, ratio])
            ours, many = (speeds.loc[(alpha, ratio), method] for method in ("outcome_hedging", "dsi"))
            cells.append(f"{NAMES.get(best, best)} {speed:.2f} ({ours:.2f}, {many:.2f})")
        rows.append(cells)
    return ["alpha", *(f"c = {ratio:g}" for ratio in ratios)], rows


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]

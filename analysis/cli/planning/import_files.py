"""`specbranch import`: files of serving engines and their benchmarks, made into what a plan reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.options import MAX_CAPACITY, OutputDir, console, within

if TYPE_CHECKING:
    from analysis.plan.measured.replay import ReplayRun
    from traces.importers.engines.records import EngineFile


def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Read these files: results of benchmarks (JSON, or a saved log), logs of servers, and up to two metrics "
            "pages, the earlier one first."
        ),
    ],
    output_dir: OutputDir,
    draft_length: Annotated[
        int | None,
        typer.Option(callback=within(1, 64), help="The server drafted so many tokens, where a file does not say K."),
    ] = None,
    draft: Annotated[str, typer.Option(help="The draft has this name, where a file does not say it.")] = "draft",
    draft_method: Annotated[
        str, typer.Option(help="Engines name the draft's method so: draft_model, eagle, eagle3, mtp, ngram ...")
    ] = "draft_model",
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            callback=within(1, MAX_CAPACITY * 64), help="The memory holds this many tokens, where no log says it."
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Compare the benchmarks with what this replay.json of a plan or a calibration predicts."),
    ] = None,
) -> None:
    """Read what an engine in production prints, and say what it tells and what it cannot."""
    from analysis.plan.inputs import new_folder
    from traces.importers.engines.bench_folder import write_bench_folder
    from traces.importers.engines.catalog import read_engine_files
    from traces.importers.engines.records import Served, pooled

    asked = None
    if replay is not None:
        from analysis.plan.measured.replay import read_replay

        asked = read_replay(replay)
    read = read_engine_files(files, Served(draft_length=draft_length, draft=draft, method=draft_method))
    new_folder(output_dir)
    written = write_bench_folder(read, output_dir, kv_tokens=kv_tokens)
    num_rows = sum(len(file.rows) for file in read)
    record = pooled([record for file in read for record in file.acceptance])
    told = f"{num_rows} benchmarks" if num_rows else "No benchmark"
    if record is None:
        told += ", and no acceptance."
    else:
        rates = ", ".join(f"{rate:.2f}" for rate in record.marginal) or "unknown by position"
        told += f"; {record.mean_acceptance_length:.2f} tokens a step with K = {record.draft_length or '?'} ({rates})."
    console.print(told, style="bold", highlight=False)
    _print_table(read)
    console.print(f"{', '.join(written)}: {output_dir}", highlight=False)
    if asked is not None:
        _print_replay(asked, output_dir)
    elif "benches.csv" in written:
        console.print(
            f"next: specbranch calibrate --bench {output_dir}, or plan --check {output_dir / 'benches.csv'}",
            highlight=False,
            soft_wrap=True,
        )
    elif record is not None and record.draft_length:
        console.print(
            f"next: specbranch advise --per-position {output_dir / 'acceptance.json'} --target-ms T --draft-ms D",
            highlight=False,
            soft_wrap=True,
        )


def _print_replay(asked: list[ReplayRun], output_dir: Path) -> None:
    """Predicted beside measured."""
    from rich.table import Table

    from analysis.plan.measured.replay import compare_replay, replay_sentence, write_compared
    from traces.importers.server_bench import read_server_bench

    path = output_dir / "benches.csv"
    if not path.exists():
        raise ValueError("these files hold no benchmark to compare with the replay.")
    found = compare_replay(asked, read_server_bench(path))
    write_compared(found, output_dir)
    console.print(replay_sentence(found), style="bold", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("at once", justify="right")
    for name in ("tokens/s", "TPOT ms", "TTFT ms"):
        for column in (name, "predicted", "error"):
            table.add_column(column, justify="right")
    for each in found:
        cells = [str(each.run.max_concurrency)]
        for name, error in each.errors().items():
            scale = 1e3 if name.endswith("_s") and "per_s" not in name else 1.0
            values = (getattr(part, name) for part in (each.measured, each.run))
            cells += [*(f"{scale * value:.4g}" for value in values), f"{error:+.1%}"]
        table.add_row(*cells)
    console.print(table)


def _print_table(files: list[EngineFile]) -> None:
    """A file a block: what it is, what was understood, what it cannot say."""
    from rich.table import Table

    for file in files:
        table = Table(box=None, pad_edge=False, title=f"{file.path.name}: {file.format}", title_justify="left")
        table.add_column("understood", max_width=34)
        table.add_column("cannot be known from it", max_width=44)
        for index in range(max(len(file.understood), len(file.unknown))):
            table.add_row(*(column[index] if index < len(column) else "" for column in (file.understood, file.unknown)))
        console.print(table, width=80)

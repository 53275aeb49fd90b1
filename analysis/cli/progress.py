"""A progress bar for anything that may take longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from traces.progress import Report


@contextmanager
def progress_bar(console: Console, title: str, *, is_transient: bool = False) -> Iterator[Report]:
    """Gives `report(done, total)`; the bar shows counts, time used and time left, from the first report on. It refreshes
    rarely, to leave the cores to what is measured. is_transient: nothing of it is left at the end."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, refresh_per_second=1, transient=is_transient)
    task = bar.add_task(title, total=None)

    def report(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()

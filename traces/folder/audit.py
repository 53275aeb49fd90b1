"""Whether a run folder holds together: every table readable, no file changed, and nothing lost between the tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from traces.files import reason_of
from traces.folder.checksums import changed_files
from traces.folder.run import Run, RunError, read_run
from traces.folder.tables import TABLE_NAMES

TOLERANCE_S = 1e-6  # clocks of two processes are one clock, but simulated times are sums


@dataclass(frozen=True)
class Audit:
    """What was looked at, and what is wrong: one sentence each, none where all is well. has_checksums: runs of before there
    were any, and those that were cut short, have none. num_requests and num_rounds are None where a table cannot be read."""

    problems: tuple[str, ...]
    is_complete: bool
    has_checksums: bool
    num_requests: int | None = None
    num_rounds: int | None = None
    num_ops: int | None = None


def audit(folder: Path) -> Audit:
    """Look through a run folder. Raises `RunError` where it is none."""
    run = read_run(folder)
    checksums = run.meta.get("checksums")
    if not isinstance(checksums, dict):
        checksums = None
    problems = []
    try:
        problems += [
            f"{name} is missing or was changed after the run" for name in changed_files(folder, checksums or {})
        ]
    except OSError as error:
        problems.append(f"a file cannot be read: {reason_of(error)}")
    unread = []
    for name in TABLE_NAMES:
        try:
            getattr(run, name)
        except RunError as error:
            unread.append(str(error))
    if unread:
        return Audit((*problems, *unread), run.is_complete, checksums is not None)
    return Audit(
        (*problems, *lost(run)),
        run.is_complete,
        checksums is not None,
        len(run.requests),
        len(run.rounds),
        len(run.ops),
    )


def lost(run: Run) -> list[str]:
    """What is not conserved between the tables of a run, one sentence a law; a run without rounds has no such laws.

    A request's rounds are numbered from 0; each begins where the one before it ended, accepts no more than was submitted and
    emits no more than that and one token; together they emit the request's output, and the last one alone ends it. Drafted
    tokens are accepted, lost once at most, or pending at the end. Operations and rounds lie within their request's span.
    Alignment has a row a committed token. Whatever has a request's number belongs to one of the requests.
    """
    requests, rounds = run.requests.set_index("request_id"), run.rounds
    if requests.index.has_duplicates:
        return [_sentence("appears twice among the requests", pd.Series(requests.index.duplicated(), requests.index))]
    if rounds.empty:
        return []
    known = rounds[rounds.request_id.isin(requests.index)].sort_values(["request_id", "round"], kind="stable")
    groups = known.groupby("request_id")
    mine = requests.loc[requests.index.isin(known.request_id)].sort_index()
    before = known.assign(end=known.position + known.num_emitted).groupby("request_id").end.shift(fill_value=0)
    aligned = run.alignment.groupby("request_id").size()
    spans = run.ops.groupby("request_id").agg(start=("start_s", "min"), end=("end_s", "max"))
    spans = spans.loc[spans.index.isin(mine.index)]
    laws: list[tuple[str, pd.Series]] = [
        ("has rounds that are not numbered from 0", _any(known, known["round"] != groups.cumcount())),
        ("has a round that does not begin where the one before it ended", _any(known, known.position != before)),
        (
            "has a round that accepted more tokens than were submitted",
            _any(known, known.num_accepted > known.num_pending),
        ),
        (
            "has a round that emitted more than it accepted and one",
            _any(known, known.num_emitted > known.num_accepted + 1),
        ),
        ("emitted another number of tokens than its output has", groups.num_emitted.sum() != mine.num_output_tokens),
        ("does not end with its last round", ~groups.is_finished.last() | (groups.is_finished.sum() != 1)),
        ("lost more drafted tokens than were drafted", _lost_too_many(groups)),
        ("has a round that ends before it begins", _any(known, known.end_s < known.start_s)),
        ("has a round after its finish", groups.end_s.max() > mine.finish_s + TOLERANCE_S),
        ("has an operation before its arrival", spans.start < mine.arrival_s.loc[spans.index] - TOLERANCE_S),
        ("has an operation after its finish", spans.end > mine.finish_s.loc[spans.index] + TOLERANCE_S),
        (
            "has another number of alignment rows than of output tokens",
            aligned != requests.num_output_tokens.reindex(aligned.index),
        ),
    ]
    if run.is_complete:  # of one that was cut short, the last request may be torn
        for name, table in (("rounds", rounds), ("operations", run.ops), ("an alignment", run.alignment)):
            laws.append(
                (f"has {name}, but is not among the requests", _any(table, ~table.request_id.isin(requests.index)))
            )
    return [_sentence(what, broken) for what, broken in laws if broken.any()]


def _any(table: pd.DataFrame, broken: pd.Series) -> pd.Series:
    """By request: whether one of its rows is broken."""
    return broken.groupby(table.request_id).any()


def _lost_too_many(groups: Any) -> pd.Series:
    sums: pd.DataFrame = groups[
        ["num_drafted", "num_accepted", "num_rejected", "num_sibling", "num_trimmed", "num_unused"]
    ].sum()
    broken: pd.Series = sums.drop(columns="num_drafted").sum(axis=1) > sums.num_drafted
    return broken


def _sentence(what: str, broken: pd.Series) -> str:
    names = broken.index[broken]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"request {names[0]}{more} {what}"

"""A table of server benchmarks with speculation: one row a run of `vllm bench serve`, by draft, draft length and concurrency.

The columns are vLLM's names where it has one, and times are milliseconds as there. Needed: method, draft, k, n_requests,
max_concurrency, request_rate, duration_s, input_tokens, output_tokens, output_tok_s, mean_tpot_ms, median_ttft_ms; where k > 0
also per_position_pct or acceptance_length. Read where they are there: dataset, kv_tokens, drafts, mean_ttft_ms, p99_ttft_ms,
median_tpot_ms, p99_tpot_ms. Other columns are left alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from traces.files import whole_file
from traces.fits.step_costs import AcceptanceByPosition
from traces.importers.base import ForeignTraceError, numbered_lines

MAX_DRAFTED_SHARE = 0.95  # above, steps without a draft are the ends of requests
MAX_RISE = 0.01  # marginal acceptance rounded to whole percent may seem to rise by so much

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row as it stands in the file."""

    k: Annotated[int, Field(ge=0)]
    n_requests: _Count
    max_concurrency: _Count
    request_rate: Annotated[float, Field(gt=0)]
    duration_s: _Positive
    input_tokens: _Positive
    output_tokens: _Positive
    output_tok_s: _Positive
    mean_tpot_ms: _Positive
    median_ttft_ms: _Positive
    method: str = "none"
    draft: str = ""
    dataset: str = ""
    kv_tokens: _Count | None = None
    mean_ttft_ms: _NotNegative | None = None
    p99_ttft_ms: _NotNegative | None = None
    median_tpot_ms: _NotNegative | None = None
    p99_tpot_ms: _NotNegative | None = None
    acceptance_length: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    drafts: _NotNegative | None = None
    per_position_pct: str = ""


_LINE = TypeAdapter(_Line)
COLUMNS = tuple(field.name for field in fields(_Line))
_NEEDED = ("method", "draft", *(field.name for field in fields(_Line) if field.default is MISSING))


@dataclass(frozen=True, kw_only=True)
class ServerBench:
    """One benchmark of a server.

    dataset, method, draft: names as the file has them. draft is "" without speculation; a method that needs no draft model
    (n-gram) is its own draft, and a draft that serves several methods is named with each. draft_length: K; 0 is decoding
    without speculation. kv_tokens: tokens that the memory for keys and values holds, as the engine's log says; None: unknown.
    num_requests, arrivals_per_s, max_concurrency: Poisson arrivals at this rate (infinite: all at once), and at most so many
    requests at the server. duration_s: from the start, before
    the first request is sent, to the last token.
    input_tokens, output_tokens: summed over the requests. output_tokens_per_s: output tokens over duration.
    mean_tpot_s, median_tpot_s, p99_tpot_s: (last token - first token) / (output tokens - 1), one value a request.
    median_ttft_s, mean_ttft_s, p99_ttft_s: from sending to the first token; a wait for the concurrency bound is not in it.
    acceptance: by position, of all steps: where the method proposed nothing in some, these count as rejected. None where
    draft_length is 0. line: in the file.
    """

    dataset: str
    method: str
    draft: str
    draft_length: int
    kv_tokens: int | None
    num_requests: int
    max_concurrency: int
    arrivals_per_s: float
    duration_s: float
    input_tokens: float
    output_tokens: float
    output_tokens_per_s: float
    mean_tpot_s: float
    median_ttft_s: float
    mean_ttft_s: float | None = None
    p99_ttft_s: float | None = None
    median_tpot_s: float | None = None
    p99_tpot_s: float | None = None
    acceptance: AcceptanceByPosition | None = None
    line: int = 0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens a step of one request, the target's own included."""
        return 1.0 if self.acceptance is None else self.acceptance.mean_acceptance_length(self.draft_length)


def read_server_bench(path: str | Path) -> list[ServerBench]:
    """All rows of a table; .gz files are unpacked.

    Raises ForeignTraceError with file and line where the file cannot be read, lacks a column, or a row has a value that
    cannot be: one that is no number, is negative, or contradicts another one.
    """
    path = Path(path)
    lines = numbered_lines(path)
    where, header_line = next(lines, ("", b""))
    if not header_line:
        raise ForeignTraceError(f"{path} is empty; give a table with a header and one benchmark a row.")
    header = [name.strip() for name in _cells(where, header_line)]
    if missing := [name for name in _NEEDED if name not in header]:
        raise ForeignTraceError(f"{where}: the table lacks the columns {', '.join(missing)}; see `traces.importers`.")
    rows: list[ServerBench] = []
    for where, line in lines:
        cells = _cells(where, line)
        if len(cells) != len(header):
            raise ForeignTraceError(f"{where}: {len(cells)} cells under {len(header)} columns; the line is damaged.")
        rows.append(bench_of(where, dict(zip(header, cells, strict=True))))
    if not rows:
        raise ForeignTraceError(f"{path} has a header and no rows; give one benchmark a row.")
    methods: dict[str, set[str]] = {}
    for row in rows:
        methods.setdefault(row.draft, set()).add(row.method)
    return [
        replace(row, draft=f"{row.method} {row.draft}") if row.draft and len(methods[row.draft]) > 1 else row
        for row in rows
    ]


def write_server_bench(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Cells by column as a table that `read_server_bench` reads; what a row does not say stays empty."""
    with whole_file(path) as place, place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _cells(where: str, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8")]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ForeignTraceError(f"{where} is no text in UTF-8 with comma-separated cells: {error}.") from None


def bench_of(where: str, cells: Mapping[str, str]) -> ServerBench:
    """A row, checked. where: what ends in its number, as "FILE, line 3". cells: by column.

    Raises ForeignTraceError as `read_server_bench` does.
    """
    given = {name: cells[name].strip() for name in COLUMNS if cells.get(name, "").strip()}
    try:
        row = _LINE.validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        got = f"but got {given[name]!r:.60}" if name in given else "but the cell is empty"
        raise ForeignTraceError(f"{where}: {name}: {first['msg']}, {got}.") from None
    if row.output_tokens <= row.n_requests:
        raise ForeignTraceError(
            f"{where}: {row.output_tokens:g} output tokens of {row.n_requests} requests; TPOT needs at least two tokens each."
        )
    return ServerBench(
        dataset=row.dataset,
        method=row.method,
        draft=_draft(row),
        draft_length=row.k,
        kv_tokens=row.kv_tokens,
        num_requests=row.n_requests,
        max_concurrency=row.max_concurrency,
        arrivals_per_s=row.request_rate,
        duration_s=row.duration_s,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        output_tokens_per_s=row.output_tok_s,
        mean_tpot_s=row.mean_tpot_ms / 1e3,
        median_ttft_s=row.median_ttft_ms / 1e3,
        mean_ttft_s=_seconds(row.mean_ttft_ms),
        p99_ttft_s=_seconds(row.p99_ttft_ms),
        median_tpot_s=_seconds(row.median_tpot_ms),
        p99_tpot_s=_seconds(row.p99_tpot_ms),
        acceptance=_acceptance(where, row) if row.k else None,
        line=int(where.rsplit(" ", 1)[1]),
    )


def _draft(row: _Line) -> str:
    if not row.k:
        return ""
    return row.method if row.draft.lower() in ("", "none", "-") else row.draft


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _acceptance(where: str, row: _Line) -> AcceptanceByPosition:
    """From the rates by position, in percent or as fractions; else the one chance that gives the acceptance length."""
    if not row.per_position_pct:
        if row.acceptance_length is None:
            raise ForeignTraceError(
                f"{where}: k is {row.k}, but neither per_position_pct nor acceptance_length is given."
            )
        if row.acceptance_length > row.k + 1:
            raise ForeignTraceError(
                f"{where}: acceptance_length {row.acceptance_length:g} exceeds k + 1 = {row.k + 1}."
            )
        drafted = _drafted_share(row, row.acceptance_length)
        return AcceptanceByPosition((_constant_chance(1 + drafted * (row.acceptance_length - 1), row.k),))
    try:
        rates = [float(rate) for rate in row.per_position_pct.split(";")]
    except ValueError:
        raise ForeignTraceError(
            f"{where}: per_position_pct must be numbers joined by ';', but got {row.per_position_pct!r:.60}."
        ) from None
    if len(rates) != row.k:
        raise ForeignTraceError(f"{where}: per_position_pct has {len(rates)} positions, but k is {row.k}.")
    scale = _scale(rates, row.acceptance_length)
    marginal: list[float] = []
    for rate in rates:
        before = marginal[-1] if marginal else 1.0
        share = rate * scale
        if not 0 <= share <= before + MAX_RISE:
            raise ForeignTraceError(
                f"{where}: per_position_pct {row.per_position_pct!r:.60} must lie in [0, 100] and never rise with the "
                "position; it is the share of all drafts that was accepted at least so far."
            )
        marginal.append(min(share, before))
    drafted = _drafted_share(row, 1 + sum(marginal))
    return AcceptanceByPosition.from_marginal([share * drafted for share in marginal])


def _drafted_share(row: _Line, acceptance_length: float) -> float:
    """Share of the steps in which something was drafted; other steps give one token. About 1 is 1, but for rounding.

    Tokens after the first of each request are drafts x acceptance_length + other steps x 1.
    """
    if row.drafts is None:
        return 1.0
    num_steps = row.output_tokens - row.n_requests - row.drafts * (acceptance_length - 1)
    return row.drafts / num_steps if num_steps > row.drafts / MAX_DRAFTED_SHARE else 1.0


def _scale(rates: Sequence[float], acceptance_length: float | None) -> float:
    """1 for fractions, 0.01 for percent: what the acceptance length says, which is 1 + their sum, or else their size."""
    if acceptance_length is None:
        return 1.0 if max(rates) <= 1 else 0.01
    accepted = acceptance_length - 1
    return min((1.0, 0.01), key=lambda scale: abs(scale * sum(rates) - accepted))


def _constant_chance(acceptance_length: float, draft_length: int) -> float:
    """The chance c with 1 + c + ... + c^K = acceptance_length, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**power for power in range(draft_length + 1)) < acceptance_length:
            low = middle
        else:
            high = middle
    return (low + high) / 2

"""What every reader of traffic does: rows are checked as they come, and gathered in flat arrays.

Arrivals are counted from the first request of the file, whatever its clock began with. Rows stand in the order of their
arrivals; a file that does not is refused, unless sorting was asked for. Blank lines are allowed at the end only. Adding a
format is one file with a `TrafficReader`, and one line in `traces.importers.traffic.catalog`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from traces.importers.base import ForeignTraceError, raw_lines
from traces.workload import Counts, Floats, Lengths, Workload

MAX_TOKENS = 2**31 - 1  # of a prompt or an output: more is a damaged file
MAX_TICKS = 2.0**63


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a user may ask of a reader.

    sort: put requests that are out of order in order, those of one instant as in the file; they are an error otherwise.
    timestamp_unit_s, prefix_block_tokens: of a timed trace, which does not say its own (`timed_trace`).
    """

    sort: bool = False
    timestamp_unit_s: float | None = None
    prefix_block_tokens: int | None = None


class TrafficReader(Protocol):
    """Reads one format."""

    @property
    def format(self) -> str:
        """Its name, a colon, and what it looks like, for people."""
        ...

    def recognises(self, first_line: bytes) -> bool:
        """Whether a file that begins with this line is probably of this format."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """The file's requests. Raises ForeignTraceError with file, line, and what to do."""
        ...


def row_error(path: Path, number: int, problem: str) -> ForeignTraceError:
    return ForeignTraceError(f"{path}, line {number}: {problem}")


def rows_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line, in which only the last ones may be blank.

    Raises ForeignTraceError where the file cannot be read, or a blank line is followed by another one.
    """
    blank = 0
    for number, line in raw_lines(path):
        if not line:
            blank = blank or number
        elif blank:
            raise row_error(path, blank, "the line is blank, but more follow; remove it, or copy the file again.")
        else:
            yield number, line


class TrafficRows:
    """Requests that a reader adds one by one; 24 bytes each.

    ticks_per_s: what one second is in the arrivals that are added.
    """

    def __init__(self, path: Path, *, ticks_per_s: float, sort: bool) -> None:
        self._path, self._ticks_per_s, self._sort = path, ticks_per_s, sort
        self._first_ticks: float = 0
        self._last_ticks: float = 0
        self._arrival_s, self._prompt_tokens, self._output_tokens = array("d"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._arrival_s)

    def add(self, number: int, ticks: float, prompt_tokens: int, output_tokens: int) -> None:
        """The request of line `number`; whole ticks are subtracted exactly, however large.

        Raises ForeignTraceError where it cannot be a request, or is out of order.
        """
        if not 0 <= ticks < MAX_TICKS:  # NaN is neither
            raise row_error(
                self._path,
                number,
                f"an arrival must be a number of at least 0, but is {ticks}; correct or remove the line.",
            )
        if not len(self):
            self._first_ticks = ticks
        elif ticks < self._last_ticks and not self._sort:
            raise row_error(
                self._path,
                number,
                f"the request arrives at {ticks}, before the one above it at {self._last_ticks}; sort the file by arrival, "
                "or have it sorted (sort=True).",
            )
        self._last_ticks = ticks
        check_tokens(self._path, number, prompt_tokens, output_tokens)
        self._arrival_s.append((ticks - self._first_ticks) / self._ticks_per_s)
        self._prompt_tokens.append(prompt_tokens)
        self._output_tokens.append(output_tokens)

    def order(self) -> NDArray[np.int64]:
        """(n,) the places of the rows by arrival."""
        return np.argsort(self.arrival_s, kind="stable")

    @property
    def arrival_s(self) -> Floats:
        """(n,) by row, from the first row."""
        return np.array(self._arrival_s)

    def workload(
        self,
        *,
        format: str,
        prefix_blocks: list[tuple[int, ...]] | None = None,
        prefix_block_tokens: int = 0,
        remarks: tuple[str, ...] = (),
    ) -> Workload:
        """All requests, in order of arrival, which counts from the first.

        prefix_blocks: by row. remarks: what people should know. Raises ForeignTraceError where there is no request.
        """
        if not len(self):
            raise ForeignTraceError(f"{self._path} holds no request; give a file with at least one.")
        order = self.order()
        arrival_s = self.arrival_s[order]
        return Workload(
            arrival_s=arrival_s - arrival_s[0],
            prompt_tokens=_counts(self._prompt_tokens)[order],
            output_tokens=_counts(self._output_tokens)[order],
            prefix_blocks=None if prefix_blocks is None else tuple(prefix_blocks[place] for place in order),
            prefix_block_tokens=0 if prefix_blocks is None else prefix_block_tokens,
            source="; ".join((f"{self._path.name} ({short_name(format)})", *remarks)),
        )


def short_name(format: str) -> str:
    """Of a format: what stands before the colon."""
    return format.partition(":")[0]


def _counts(values: array[int]) -> Counts:
    return np.array(values, dtype=np.int64)


def check_tokens(path: Path, number: int, prompt_tokens: int, output_tokens: int) -> None:
    """Raises ForeignTraceError where a prompt or an output of line `number` cannot have so many tokens."""
    for name, tokens in (("a prompt", prompt_tokens), ("an output", output_tokens)):
        if not 1 <= tokens <= MAX_TOKENS:
            raise row_error(
                path,
                number,
                f"{name} must have 1 to {MAX_TOKENS} tokens, but has {tokens}; correct or remove the line.",
            )


@dataclass(frozen=True, kw_only=True)
class CsvTraffic:
    """The reader of a format with one request a row under a line of column names; further columns are left alone.

    arrival, prompt, output: names of the columns. ticks: what an arrival's text says, in ticks; raises ValueError.
    skips_empty_outputs: requests without output tokens failed, and are left out; they are an error otherwise.
    """

    format: str
    arrival: str
    prompt: str
    output: str
    ticks: Callable[[str], float] = float
    ticks_per_s: float = 1.0
    skips_empty_outputs: bool = False

    def recognises(self, first_line: bytes) -> bool:
        return {self.arrival, self.prompt, self.output} <= set(column_names(first_line))

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """Raises ForeignTraceError with file and line where a row is not a request."""
        rows = TrafficRows(path, ticks_per_s=self.ticks_per_s, sort=options.sort)
        num_failed = 0
        for number, (arrival, prompt, output) in csv_rows(path, (self.arrival, self.prompt, self.output)):
            try:
                ticks = self.ticks(arrival)
            except ValueError:
                raise row_error(
                    path, number, f"{self.arrival} is {arrival!r:.60}, which is not a time; correct or remove the line."
                ) from None
            prompt_tokens, output_tokens = (
                whole_number(path, number, self.prompt, prompt),
                whole_number(path, number, self.output, output),
            )
            if self.skips_empty_outputs and output_tokens == 0:
                num_failed += 1
            else:
                rows.add(number, ticks, prompt_tokens, output_tokens)
        failed = (f"{num_failed} requests without output tokens failed and are left out",) if num_failed else ()
        return rows.workload(format=self.format, remarks=failed)


def column_names(first_line: bytes) -> list[str]:
    return [name.strip().strip('"') for name in first_line.decode("utf-8", "replace").split(",")]


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(number, the texts of these columns) of every row after the line of column names.

    Raises ForeignTraceError where a row is not text, or has more or fewer fields than there are columns.
    """
    names: list[str] = []
    for number, line in rows_of(path):
        if not names:
            names = column_names(line)
            places = [names.index(name) for name in columns]
            continue
        fields = line.decode("utf-8", "replace").split(",")
        if len(fields) != len(names):
            raise row_error(
                path, number, f"the row has {len(fields)} fields under {len(names)} columns; correct or remove it."
            )
        yield number, [fields[place].strip().strip('"') for place in places]


def whole_number(path: Path, number: int, column: str, text: str) -> int:
    """A count, also where it is written as 12.0. Raises ForeignTraceError otherwise."""
    try:
        return int(text) if text.isdecimal() else _whole(float(text))
    except ValueError:
        raise row_error(
            path, number, f"{column} is {text!r:.60}, which is not a whole number; correct or remove the line."
        ) from None


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError(value)
    return int(value)


def lengths_of(path: Path, prompt: array[int], output: array[int], *, format: str) -> Lengths:
    """Raises ForeignTraceError where there is no request."""
    if not len(prompt):
        raise ForeignTraceError(f"{path} holds no request; give a file with at least one.")
    return Lengths(
        prompt_tokens=_counts(prompt), output_tokens=_counts(output), source=f"{path.name} ({short_name(format)})"
    )

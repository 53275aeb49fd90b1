"""The run folder, the only currency: what the executor and the simulator write, and every table and plot reads.

    config.yaml, meta.json      at once, when the run starts; meta says whether it is complete
    parts/00000/ops.parquet     every flush, a folder of tables; what a run that was cut short leaves behind
    ops.parquet, rounds.parquet, requests.parquet, alignment.parquet, tails.parquet, summary.json    at the end

Every file, and every part, is written under a temporary name and renamed, so that no reader ever sees half of one. A complete
run's meta.json holds the checksums of the other files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import yaml

from traces.files import reason_of
from traces.folder.checks import problem_of
from traces.folder.tables import (
    EXTRA_COLUMNS,
    READABLE_VERSIONS,
    SCHEMAS,
    TABLE_NAMES,
    VERSION_KEY,
    records_of,
    table_of,
    trace_of,
    upgraded,
)
from traces.mistakes import check_once, unique_json
from traces.schema import SCHEMA_VERSION, RequestRecord, RequestTrace, Round

PARTS = "parts"
MAX_SETTINGS_BYTES = 4 << 20  # YAML is read slowly
MAX_REPORT_BYTES = 256 << 20
INCOMPLETE, COMPLETE = "incomplete", "complete"


class RunError(ValueError):
    """A run folder that cannot be written or read; the message is one line that says what to do."""


class Run:
    """A run that was recorded; tables are read when they are first asked for. Made by `read_run`."""

    def __init__(self, folder: Path, config: dict[str, Any], meta: dict[str, Any], summary: dict[str, Any]) -> None:
        self.folder, self.config, self.meta, self.summary = folder, config, meta, summary
        self._tables: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.meta['status']})"

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its end; if not, what was flushed before is here."""
        return bool(self.meta["status"] == COMPLETE)

    @cached_property
    def ops(self) -> pd.DataFrame:
        """One row an operation (`traces.schema.Op`)."""
        return self._frame("ops")

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round (`Round` and `RoundTimes`)."""
        return self._frame("rounds")

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request (`RequestRecord`)."""
        return self._frame("requests")

    @cached_property
    def alignment(self) -> pd.DataFrame:
        """One row a committed position (the table's row after the last one, for the class there, is left out)."""
        table = self._table("alignment")
        return _as_frame(table.filter(pa.compute.is_valid(table.column("rank"))))

    @cached_property
    def tails(self) -> pd.DataFrame:
        """One row an off-path drafted token."""
        return self._frame("tails")

    def subset(self, request_ids: Collection[int]) -> Run:
        """The same run with these requests only (its summary still speaks of all)."""
        part = Run(self.folder, self.config, self.meta, self.summary)
        wanted = list(request_ids)
        for name in TABLE_NAMES:
            table = self._table(name)
            part._tables[name] = table.filter(pa.compute.is_in(table["request_id"], pa.array(wanted)))
        return part

    def traces(self) -> list[RequestTrace]:
        """Traces of the requests whose alignment was recorded, in the order in which it was recorded."""
        known = {request.request_id: request for request in records_of(self._table("requests"), RequestRecord)}
        alignment, tails = _by_request(self._table("alignment")), _by_request(self._table("tails"))
        no_tails = table_of("tails", [])
        window = self.meta.get("class_window", 0)
        window = window if isinstance(window, int) else 0  # of the predictor; runs before it was written do not know it
        traces = []
        for request_id, rows in alignment.items():
            if request_id not in known:
                warnings.warn(f"{self.folder}: request {request_id} was cut short and is left out.", stacklevel=2)
                continue
            try:
                of_request = tails.get(request_id, no_tails)
                traces.append(trace_of(known[request_id], rows, of_request, class_window=window))
            except ValueError as error:
                warnings.warn(f"{self.folder}: {error} It is left out.", stacklevel=2)
        return traces

    def rounds_of(self, request_id: int) -> list[Round]:
        """The rounds of one request, equal to what was written; none if it has none."""
        return self._rounds_by_request.get(request_id, [])

    @cached_property
    def _rounds_by_request(self) -> dict[int, list[Round]]:
        grouped: dict[int, list[Round]] = {}
        for round_ in records_of(self._table("rounds"), Round):
            grouped.setdefault(round_.request_id, []).append(round_)
        return grouped

    def _frame(self, name: str) -> pd.DataFrame:
        return _as_frame(self._table(name))

    def _table(self, name: str) -> Any:
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name]

    def _read(self, name: str) -> Any:
        merged = self.folder / f"{name}.parquet"
        if merged.exists():
            return read_table(merged, name)
        if self.is_complete:
            raise RunError(f"{self.folder} is marked complete, but {merged.name} is missing; copy the run again.")
        tables = [table_of(name, [])]
        for path in part_files(self.folder, name):
            try:
                tables.append(read_table(path, name))
            except RunError as error:
                warnings.warn(f"skipped a part: {error}", stacklevel=5)
        return pa.concat_tables(tables)


def part_files(folder: Path, name: str) -> list[Path]:
    """The files of a table in the parts of a run, in their order; flat ones are of before parts were folders."""
    parts = folder / PARTS
    whole = [path for path in parts.glob(f"*/{name}.parquet") if path.parent.name.isdecimal()]
    return sorted(parts.glob(f"{name}-*.parquet")) + sorted(whole)


def read_run(folder: str | Path) -> Run:
    """Open a run folder, complete or cut short."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"there is no run folder {folder}; check the path.")
    if not (folder / "meta.json").is_file():
        raise RunError(f"{folder} is not a run folder: it has no meta.json; give the folder that a recording wrote.")
    meta = read_json(folder / "meta.json")
    if meta.get("status") not in (COMPLETE, INCOMPLETE):
        raise RunError(f"{folder} is not a run folder: its meta.json has no status; give the folder of a recording.")
    _check_version(folder / "meta.json", meta.get("schema_version"))
    config = read_yaml(folder / "config.yaml")
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    return Run(folder, config, meta, summary)


def read_table(path: Path, name: str) -> Any:
    """One file of a table, held to the schema."""
    try:
        table = pq.read_table(
            path, page_checksum_verification=True
        )  # of files that have checksums: ours since version 2
        table.validate(full=True)  # texts are UTF-8, lists lie within their values: later nobody names the file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot read {path}: {reason_of(error)}; the file is damaged, copy or record it again."
        ) from error
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    table = upgraded(table, name, _check_version(path, version))
    for index, field in enumerate(SCHEMAS[name]):  # a run from before the recorder gave this column
        if name == "alignment" and field.name in EXTRA_COLUMNS and field.name not in table.schema.names:
            table = table.add_column(index, field, pa.nulls(len(table), field.type))
    if table.schema.names != SCHEMAS[name].names:
        raise RunError(f"{path} has other columns than schema {SCHEMA_VERSION}: {table.schema.names}; record it again.")
    try:
        table = table.cast(SCHEMAS[name])
    except pa.ArrowException as error:
        raise RunError(f"{path} has columns of other types ({reason_of(error)}); copy or record it again.") from error
    if problem := problem_of(table, name):
        raise RunError(f"{path} has {problem}; copy or record it again.")
    return table


def _check_version(path: Path, version: Any) -> int:
    """The schema version as a number, if this code reads it."""
    for readable in READABLE_VERSIONS:
        if str(version) == str(readable):
            return readable
    raise RunError(
        f"{path} was written with schema version {version!s:.40}, but this code reads "
        f"{' and '.join(map(str, READABLE_VERSIONS))}; read it with the version that wrote it, or record it again."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The settings or reports in a JSON file. Raises `RunError` if it cannot be read or holds something else."""
    return _mapping_of(path, unique_json, MAX_REPORT_BYTES)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises `RunError` if it cannot be read or holds something else."""
    return _mapping_of(path, _unique_yaml, MAX_SETTINGS_BYTES)


class _UniqueLoader(yaml.SafeLoader):
    """YAML's safe loader, but a name that a mapping gives twice is a `TwiceError`."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        check_once([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"])
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _unique_yaml(text: str) -> Any:
    return yaml.load(text, _UniqueLoader)


def _mapping_of(path: Path, parse: Callable[[str], Any], max_bytes: int) -> dict[str, Any]:
    try:
        if (num_bytes := path.stat().st_size) > max_bytes:
            raise RunError(f"{path} has {num_bytes >> 20} MiB, more than {max_bytes >> 20}: these are not settings.")
        read = parse(path.read_text(encoding="utf-8"))
    except RunError:
        raise
    except RecursionError:
        raise RunError(f"cannot read {path}: it is nested too deeply; write plain settings.") from None
    except (TypeError, KeyError, AttributeError, IndexError) as error:  # PyYAML's own constructors raise all of these
        why = f"a value does not fit its tag ({reason_of(error)})"
        raise RunError(f"cannot read {path}: {why}; mend the file, or copy it again.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {path}: {reason_of(error)}; mend the file, or copy it again.") from error
    if not isinstance(read, dict):
        raise RunError(f"{path} should hold settings by name, but holds {type(read).__name__}; mend or copy the file.")
    return read


def _by_request(table: Any) -> dict[int, Any]:
    """The table cut into its requests, in order of appearance; rows of one request stand together."""
    ids = table.column("request_id").to_numpy()
    if not len(ids):
        return {}
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]).tolist()
    cut: dict[int, Any] = {}
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        rows, request_id = table.slice(start, stop - start), int(ids[start])
        cut[request_id] = pa.concat_tables([cut[request_id], rows]) if request_id in cut else rows
    return cut


def _as_frame(table: Any) -> pd.DataFrame:
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas()
    return frame

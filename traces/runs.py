"""The run folder, the only currency: what the executor and the simulator write, and every table and plot reads.

    config.yaml, meta.json      at once, when the run starts; meta says whether it is complete
    parts/ops-00000.parquet     every flush; what a run that was cut short leaves behind
    ops.parquet, rounds.parquet, requests.parquet, alignment.parquet, tails.parquet, summary.json    at the end

Every file is written under a temporary name and renamed, so that no reader ever sees half of one.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from os import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from traces.schema import SCHEMA_VERSION, Op, RequestRecord, RequestTrace, Round, RoundTimes
from traces.tables import (
    EXTRA_COLUMNS,
    SCHEMAS,
    TABLE_NAMES,
    VERSION_KEY,
    alignment_of,
    records_of,
    table_of,
    tails_of,
    trace_of,
)

PARTS = "parts"
INCOMPLETE, COMPLETE = "incomplete", "complete"


class RunError(ValueError):
    """A run folder that cannot be written or read; the message is one line that says what to do."""


def check_new_folder(folder: Path) -> None:
    """Refuse a place that holds something already; runs are never overwritten."""
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise RunError(f"cannot look into {folder}: {_reason(error)}; name another place.") from error
    if is_taken:
        raise RunError(f"{folder} already holds something, and runs are never overwritten; name a new folder.")


class RunWriter:
    """Writes one run folder. As a context manager it flushes what was recorded, also when the run fails; a run that failed
    before anything was recorded leaves no folder, so that it can be tried again.

    Records are kept in memory until `flush`; `finish` makes the folder complete.

    config: every setting resolved. meta: devices, seed, noise rule, contention ... (versions, commit, date are added).
    """

    def __init__(self, folder: str | Path, *, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._num_parts = 0
        self._is_finished = False
        self._rows: dict[str, list[tuple[Any, ...]]] = {"ops": [], "rounds": [], "requests": []}
        self._tables: dict[str, list[Any]] = {"alignment": [], "tails": []}
        self._meta = {**_surroundings(), **meta, "schema_version": SCHEMA_VERSION, "status": INCOMPLETE}
        config_text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        meta_text = _json(self._meta)
        check_new_folder(self.folder)
        try:
            (self.folder / PARTS).mkdir(parents=True)
        except OSError as error:
            raise RunError(
                f"cannot create the run folder {self.folder}: {_reason(error)}; name another place."
            ) from error
        self._write_text("config.yaml", config_text)
        self._write_text("meta.json", meta_text)

    def ops(self, ops: Sequence[Op]) -> None:
        """Record operations."""
        self._extend("ops", ops)

    def rounds(self, rounds: Sequence[tuple[Round, RoundTimes]]) -> None:
        """Record rounds with their times."""
        self._extend("rounds", [(*settled, *times) for settled, times in rounds])

    def request(self, request: RequestRecord) -> None:
        """Record a request."""
        self._extend("requests", [request])

    def trace(self, trace: RequestTrace, columns: Mapping[str, Any] | None = None) -> None:
        """Record the alignment and tails of a request, whose `RequestRecord` goes to `request`.

        columns: more of each committed position (`traces.tables.EXTRA_COLUMNS`): N entries, (N, k) for the lists.
        """
        self._check_open()
        self._tables["alignment"].append(alignment_of(trace, columns or {}))
        self._tables["tails"].append(tails_of(trace))

    def flush(self) -> None:
        """Write what was recorded since the last flush as one part file a table; a killed run leaves these."""
        self._check_open()
        for name in TABLE_NAMES:
            table = self._recorded(name)
            if len(table):
                self._write_table(f"{PARTS}/{name}-{self._num_parts:05d}.parquet", table)
            (self._rows[name] if name in self._rows else self._tables[name]).clear()
        self._num_parts += 1

    def finish(self, summary: Mapping[str, Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Merge the parts, write summary.json and mark the run complete. meta: what was learnt on the way.

        Not-a-number and infinity become null in summary.json, which strict JSON readers refuse otherwise.
        """
        self.flush()
        for name in TABLE_NAMES:
            parts = [_read_table(path, name) for path in sorted((self.folder / PARTS).glob(f"{name}-*.parquet"))]
            self._write_table(f"{name}.parquet", pa.concat_tables([table_of(name, []), *parts]))
        self._write_text("summary.json", _json(summary))
        self._meta.update(meta or {}, schema_version=SCHEMA_VERSION, status=COMPLETE)
        self._write_text("meta.json", _json(self._meta))
        self._is_finished = True
        for path in (self.folder / PARTS).iterdir():
            path.unlink()
        (self.folder / PARTS).rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_finished:
            return
        if error is not None and self._is_empty:
            self._remove()
        else:
            self.flush()

    @property
    def _is_empty(self) -> bool:
        return not (self._num_parts or any(self._rows.values()) or any(self._tables.values()))

    def _remove(self) -> None:
        """Take back what `__init__` made; other files that somebody put there stay."""
        for path in (self.folder / "config.yaml", self.folder / "meta.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / PARTS).rmdir()
            self.folder.rmdir()

    def _extend(self, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._check_open()
        self._rows[name].extend(rows)

    def _check_open(self) -> None:
        if self._is_finished:
            raise RunError(f"the run {self.folder} is finished and takes no more records; write another run.")

    def _recorded(self, name: str) -> Any:
        if name in self._rows:
            return table_of(name, self._rows[name])
        return pa.concat_tables([table_of(name, []), *self._tables[name]])

    def _write_table(self, name: str, table: Any) -> None:
        path = self.folder / name
        temporary = path.with_name(path.name + ".tmp")
        try:
            pq.write_table(table.combine_chunks(), temporary)
            replace(temporary, path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {_reason(error)}; what was flushed before is readable.") from error

    def _write_text(self, name: str, text: str) -> None:
        path = self.folder / name
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            replace(temporary, path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {_reason(error)}; free some space or name another place.") from error


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
        found = []
        for request_id, rows in alignment.items():
            if request_id not in known:
                warnings.warn(f"{self.folder}: request {request_id} was cut short and is left out.", stacklevel=2)
                continue
            try:
                found.append(trace_of(known[request_id], rows, tails.get(request_id, no_tails)))
            except ValueError as error:
                warnings.warn(f"{self.folder}: {error} It is left out.", stacklevel=2)
        return found

    def rounds_of(self, request_id: int) -> list[Round]:
        """The rounds of one request, equal to what was written; none if it has none."""
        return self._rounds_by_request.get(request_id, [])

    @cached_property
    def _rounds_by_request(self) -> dict[int, list[Round]]:
        grouped: dict[int, list[Round]] = {}
        for settled in records_of(self._table("rounds"), Round):
            grouped.setdefault(settled.request_id, []).append(settled)
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
            return _read_table(merged, name)
        if self.is_complete:
            raise RunError(f"{self.folder} is marked complete, but {merged.name} is missing; copy the run again.")
        tables = [table_of(name, [])]
        for path in sorted((self.folder / PARTS).glob(f"{name}-*.parquet")):
            try:
                tables.append(_read_table(path, name))
            except RunError as error:
                warnings.warn(f"skipped a part: {error}", stacklevel=5)
        return pa.concat_tables(tables)


def read_run(folder: str | Path) -> Run:
    """Open a run folder, complete or cut short."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"there is no run folder {folder}; check the path.")
    if not (folder / "meta.json").is_file():
        raise RunError(f"{folder} is not a run folder: it has no meta.json; give the folder that a recording wrote.")
    meta = _read_json(folder / "meta.json")
    if meta.get("status") not in (COMPLETE, INCOMPLETE):
        raise RunError(f"{folder} is not a run folder: its meta.json has no status; give the folder of a recording.")
    _check_version(folder / "meta.json", meta.get("schema_version"))
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {folder / 'config.yaml'}: {_reason(error)}; copy the run again.") from error
    summary = _read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    return Run(folder, config, meta, summary)


def _read_table(path: Path, name: str) -> Any:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"cannot read {path}: {_reason(error)}; the file is damaged, copy or record it again."
        ) from error
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    _check_version(path, version)
    for index, field in enumerate(SCHEMAS[name]):  # a run from before the recorder gave this column
        if name == "alignment" and field.name in EXTRA_COLUMNS and field.name not in table.schema.names:
            table = table.add_column(index, field, pa.nulls(len(table), field.type))
    if table.schema.names != SCHEMAS[name].names:
        raise RunError(f"{path} has other columns than schema {SCHEMA_VERSION}: {table.schema.names}; record it again.")
    return table.cast(SCHEMAS[name])


def _check_version(path: Path, version: Any) -> None:
    if str(version) != str(SCHEMA_VERSION):
        raise RunError(
            f"{path} was written with schema version {version}, but this code reads {SCHEMA_VERSION}; "
            "read it with the version that wrote it, or record it again."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {_reason(error)}; copy the run again.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} holds no settings but a {type(found).__name__}; is this a run folder?")
    return found


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


def _surroundings() -> dict[str, Any]:
    """Where and when a run was made: versions, platform, commit and date. Imports nothing heavy."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "pandas", "pyarrow", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of this very source, with -dirty when it was changed; None when it is not under git."""
    try:
        here = Path(__file__).resolve()
        for words in (["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--dirty", "--abbrev=40"]):
            done = subprocess.run(
                ["git", *words], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _plain(value: Any) -> Any:
    """Dataclasses, enums, tuples, paths and numpy numbers as what YAML and JSON can hold."""
    try:
        return to_jsonable_python(value, inf_nan_mode="null", fallback=_of_numpy)
    except (PydanticSerializationError, TypeError) as error:
        raise RunError(f"a run's settings cannot be written: {_reason(error)}; use plain values.") from error


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain value")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300].rstrip(".")

"""Write a run folder (`traces.folder.run` says what is in it): part by part while a run goes on, whole when it ends."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import replace
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from traces.files import UNFINISHED, reason_of, whole_file, write_text
from traces.folder.checksums import checksums_of
from traces.folder.run import COMPLETE, INCOMPLETE, PARTS, RunError, part_files, read_run, read_table
from traces.folder.tables import TABLE_NAMES, alignment_of, table_of, tails_of
from traces.schema import SCHEMA_VERSION, Op, RequestRecord, RequestTrace, Round, RoundTimes


def check_new_folder(folder: Path) -> None:
    """Refuse a place that holds something already, since runs are never overwritten, or where nothing can be written."""
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise RunError(f"cannot look into {folder}: {reason_of(error)}; name another place.") from error
    if is_taken:
        raise RunError(f"{folder} already holds something, and runs are never overwritten; name a new folder.")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in missing:  # the innermost first
            place.rmdir()
    except OSError as error:
        raise RunError(f"cannot create the run folder {folder}: {reason_of(error)}; name another place.") from error


class RunWriter:
    """Writes one run folder. As a context manager it flushes what was recorded, also when the run fails; a run that failed
    before anything was recorded leaves no folder, so that it can be tried again.

    Records are kept in memory until `flush`; `finish` makes the folder complete.

    config: every setting resolved. meta: devices, seed, noise rule, contention ... (versions, commit, date are added).
    resumes: go on with a run of the same settings that was cut short; its parts stay as they are.
    """

    def __init__(
        self, folder: str | Path, *, config: Mapping[str, Any], meta: Mapping[str, Any], resumes: bool = False
    ) -> None:
        self.folder = Path(folder)
        self._num_parts = 0
        self._is_finished = False
        self._resumes = resumes
        self._rows: dict[str, list[tuple[Any, ...]]] = {"ops": [], "rounds": [], "requests": []}
        self._tables: dict[str, list[Any]] = {"alignment": [], "tails": []}
        self._meta = {**_surroundings(), **meta, "schema_version": SCHEMA_VERSION, "status": INCOMPLETE}
        if resumes:
            self._go_on(_plain(config))
            return
        config_text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        meta_text = _json(self._meta)
        check_new_folder(self.folder)
        try:
            (self.folder / PARTS).mkdir(parents=True)
        except OSError as error:
            raise RunError(
                f"cannot create the run folder {self.folder}: {reason_of(error)}; name another place."
            ) from error
        _write_text(self.folder / "config.yaml", config_text)
        _write_text(self.folder / "meta.json", meta_text)

    def ops(self, ops: Sequence[Op]) -> None:
        """Record operations."""
        self._extend("ops", ops)

    def rounds(self, rounds: Sequence[tuple[Round, RoundTimes]]) -> None:
        """Record rounds with their times."""
        self._extend("rounds", [(*round_, *times) for round_, times in rounds])

    def request(self, request: RequestRecord) -> None:
        """Record a request."""
        self._extend("requests", [request])

    def trace(self, trace: RequestTrace, columns: Mapping[str, Any] | None = None) -> None:
        """Record the alignment and tails of a request, whose `RequestRecord` goes to `request`.

        columns: more of each committed position (`traces.folder.tables.EXTRA_COLUMNS`): N entries, (N, k) for the lists.
        """
        self._check_open()
        self._tables["alignment"].append(alignment_of(trace, columns or {}))
        self._tables["tails"].append(tails_of(trace))

    def flush(self) -> None:
        """Write what was recorded since the last flush as one part, whole or not at all; a killed run leaves its parts."""
        self._check_open()
        tables = {name: table for name in TABLE_NAMES if len(table := self._recorded(name))}
        if tables:
            part = self.folder / PARTS / f"{self._num_parts:05d}"
            unfinished = part.with_name(part.name + UNFINISHED)
            for name, table in tables.items():
                self._write_table(f"{PARTS}/{unfinished.name}/{name}.parquet", table)
            with _readable_before():
                replace(unfinished, part)
        for kept in (*self._rows.values(), *self._tables.values()):
            kept.clear()
        self._num_parts += 1

    def finish(self, summary: Mapping[str, Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Merge the parts, write summary.json and mark the run complete. meta: what was learnt on the way.

        Not-a-number and infinity become null in summary.json, which strict JSON readers refuse otherwise.
        """
        self.flush()
        known = self._merged("requests")["request_id"] if self._resumes else None
        for name in TABLE_NAMES:  # one at a time: together they may be more than the memory holds
            table = self._merged(name)
            if known is not None:  # without what a request left that was cut short and decoded again
                table = table.filter(pa.compute.is_in(table["request_id"], known))
            self._write_table(f"{name}.parquet", table)
        write_json(self.folder / "summary.json", summary)
        self._meta.update(
            meta or {}, schema_version=SCHEMA_VERSION, status=COMPLETE, checksums=checksums_of(self.folder)
        )
        write_json(self.folder / "meta.json", self._meta)
        self._is_finished = True
        rmtree(self.folder / PARTS, ignore_errors=True)  # a part that stays is never read again

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

    def _go_on(self, config: Any) -> None:
        """Take up the run that is there. Raises RunError for a complete one, and for one of other settings."""
        run = read_run(self.folder)
        if run.is_complete:
            raise RunError(f"{self.folder} is complete, there is nothing to resume; name a new folder for another run.")
        other = [name for name in {**config, **run.config} if config.get(name) != run.config.get(name)]
        if other:
            raise RunError(
                f"{self.folder} was recorded with other settings ({', '.join(sorted(other))}); resume it with its own ones."
            )
        for path in (*(self.folder / f"{name}.parquet" for name in TABLE_NAMES), self.folder / "summary.json"):
            path.unlink(
                missing_ok=True
            )  # of an end that failed: read in place of the parts, it would hide those to come
        numbers = [int(match[0]) for path in (self.folder / PARTS).iterdir() if (match := re.search(r"\d+", path.name))]
        self._num_parts = max(numbers, default=-1) + 1
        self._meta = {**run.meta, "resumed": [*run.meta.get("resumed", ()), self._meta["date"]]}
        write_json(self.folder / "meta.json", self._meta)

    def _merged(self, name: str) -> Any:
        return pa.concat_tables(
            [table_of(name, []), *(read_table(path, name) for path in part_files(self.folder, name))]
        )

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
        with _readable_before(), whole_file(self.folder / name) as place:
            pq.write_table(table.combine_chunks(), place, write_page_checksum=True)


@contextmanager
def _readable_before() -> Iterator[None]:
    """What cannot be written is one line that says what becomes of the rest."""
    try:
        yield
    except OSError as error:
        why = str(error) if error.errno is None else f"cannot write: {reason_of(error)}."
        raise RunError(f"{why.rstrip('.')}; what was recorded before stays readable.") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all. Dataclasses become objects; not-a-number and infinity become null, since strict
    readers refuse them. Raises `RunError`."""
    _write_text(path, _json(values))


def _write_text(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(str(error)) from error


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
        raise RunError(f"a run's settings cannot be written: {reason_of(error)}; use plain values.") from error


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

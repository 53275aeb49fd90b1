"""Reports on a run that are made after it: each a file of its own in the run folder, NAME.json with the report under NAME."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from traces.folder.run import RunError, read_json
from traces.folder.writer import write_json
from traces.mistakes import first_mistake

ReportT = TypeVar("ReportT")


def write_report(folder: Path, name: str, report: object) -> None:
    """Put a report into a folder. report: a dataclass, or plain values."""
    write_json(folder / f"{name}.json", {name: report})


def read_report(folder: Path, name: str) -> Any:
    """Plain values of a report; folders of schema version 1 have it in their summary. Raises `RunError`."""
    for path in (folder / f"{name}.json", folder / "summary.json"):
        if path.exists() and name in (reports := read_json(path)):
            return reports[name]
    raise RunError(f"{folder} holds no {name}; give the folder of the command that makes one.")


def typed_report(folder: Path, name: str, values: Any, kind: TypeAdapter[ReportT]) -> ReportT:
    """Plain values as the records that they stand for. Raises `RunError`."""
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        raise RunError(
            f"{folder} holds no {name} that can be read: {name}: {first_mistake(error)}; run its command again."
        ) from error

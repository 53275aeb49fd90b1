"""JSON of benchmarks: one object in a file, however it is broken into lines, or one a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.importers.base import ForeignTraceError, numbered_lines
from traces.mistakes import parse_json

MAX_NUMBER = 1e18  # of tokens, requests or milliseconds
Objects = list[tuple[str, Mapping[str, Any]]]


def read_objects(path: Path) -> Objects:
    """("FILE, line N", object) of each object. Raises ForeignTraceError with file and line for anything else."""
    lines = list(numbered_lines(path))
    if not lines:
        raise ForeignTraceError(f"{path} is empty; give a benchmark's results.")
    objects: Objects = []
    for where, line in lines:
        try:
            value = parse_json(line)
        except ValueError as error:
            return _whole(path, lines, objects, error)
        objects.append((where, _object(where, value)))
    return objects


def _whole(path: Path, lines: list[tuple[str, bytes]], objects: Objects, error: Exception) -> Objects:
    """The file as one object, where its lines are none."""
    where = lines[len(objects)][0]
    if not objects:
        try:
            value = parse_json(b"\n".join(line for _, line in lines))
        except json.JSONDecodeError as whole:
            where, error = lines[min(whole.lineno, len(lines)) - 1][0], whole
        except ValueError as whole:
            where, error = lines[0][0], whole
        else:
            return [(lines[0][0], _object(lines[0][0], value))]
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    raise ForeignTraceError(f"{where} is not JSON: {text}; was the file cut, or written twice?")


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ForeignTraceError(f"{where}: a benchmark's result is a JSON object, but got {type(value).__name__}.")
    return value


def number(where: str, given: Mapping[str, Any], name: str, *, needed: bool = True) -> float | None:
    """A number of 0 or more; a rate may be infinite, which some tools write as text. Raises ForeignTraceError otherwise.

    needed: refuse absence and null, which are None otherwise.
    """
    value = given.get(name)
    if value is None:
        if needed:
            raise ForeignTraceError(f"{where}: {name} is missing; is the result whole?")
        return None
    if name.endswith("rate") and value in ("inf", math.inf):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_NUMBER:
        raise ForeignTraceError(f"{where}: {name} must be a number of at least 0, but got {value!r:.60}.")
    return float(value)


def numbers(where: str, given: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """A list of numbers of 0 or more; () where it is absent or null. Raises ForeignTraceError otherwise."""
    values = given.get(name)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise ForeignTraceError(f"{where}: {name} must be a list of numbers, but got {values!r:.60}.")
    return tuple(number(where, {name: value}, name) or 0.0 for value in values)


def text_of_number(value: float | None) -> str | None:
    """As a cell: whole numbers without a point."""
    if value is None:
        return None
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)

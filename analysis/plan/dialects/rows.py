"""What the dialects share: a table as closed rows by batch size, and JSON text that must be an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sim.serving.rounds.length_rules import LengthTable
from traces.mistakes import parse_json

Row = tuple[int, int, int]  # first and last batch size, both included, and K


def speculating_rows(table: LengthTable, max_num_seqs: int) -> list[Row]:
    """`rows_by_batch` of a table that speculates somewhere. Raises ValueError where it never does: nothing to configure."""
    rows = rows_by_batch(table, max_num_seqs)
    if not any(length for _, _, length in rows):
        raise ValueError("this table never speculates; start the engine without a draft.")
    return rows


def rows_by_batch(table: LengthTable, max_num_seqs: int) -> list[Row]:
    """Rows [first, last, K] up to the largest batch; neighbours of one length are one row.

    Raises ValueError where the table depends on contexts or has a hysteresis, which no engine's table can say.

    >>> rows_by_batch(LengthTable.of((1, 4, 3), (5, 9, 3), (10, None, 0)), 256)
    [(1, 9, 3), (10, 256, 0)]
    """
    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, but got {max_num_seqs}.")
    if table.hysteresis:
        raise ValueError(f"no engine's table has a hysteresis, but this one has {table.hysteresis}; write it without.")
    rows: list[Row] = []
    for band in table.bands:
        if band.min_context or band.max_context is not None:
            raise ValueError(
                "no engine's table depends on the context yet, but this one does; plan by the batch alone."
            )
        if band.first > max_num_seqs:
            break
        row = (band.first, min(band.last or max_num_seqs, max_num_seqs), band.draft_length)
        if rows and rows[-1][2] == row[2]:
            row = (rows.pop()[0], *row[1:])
        rows.append(row)
    return rows


def read_object(text: str, what: str) -> Mapping[str, Any]:
    """The JSON object of a text. Raises ValueError, in one line, where it is none. what: for the message."""
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, but got {type(value).__name__}.")
    return value


def whole_number(value: Any, what: str, *, minimum: int) -> int:
    """A whole number, which true and false are not. Raises ValueError otherwise, and below the minimum."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{what} must be a whole number of at least {minimum}, but got {value!r:.40}.")
    return value


def batch_key(key: str, what: str, *, minimum: int) -> int:
    """A batch size that is written as the key of a JSON object. Raises ValueError otherwise."""
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise ValueError(f"{what} has the key {key!r:.40}, which is not a batch size.")
    return whole_number(int(key), f"the batch size {key!r} of {what}", minimum=minimum)

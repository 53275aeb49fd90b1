"""The tables of a run folder: their columns, and how records become columns and come back.

Column names are the field names of the records in `traces.schema`, in their order. Floats are stored as float64, so
that what is read equals what was written to the last bit.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from traces.schema import (
    SCHEMA_VERSION,
    FinishReason,
    Op,
    RequestRecord,
    RequestTrace,
    Round,
    RoundTimes,
    Signal,
    TokenChances,
)

VERSION_KEY = b"schema_version"
READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)
TABLE_NAMES = ("ops", "rounds", "requests", "alignment", "tails")
UNSIGNED = ("seed", "noise_key")  # full 64 bits
SIGNAL_COLUMNS = ("draft_max_prob", "draft_entropy", "draft_margin")
CLASS_COLUMNS = ("class_reject", "class_confidence", "class_accept")

# What a recorder may add to each committed position; a column that was not given is null.
EXTRA_COLUMNS: Mapping[str, Any] = {
    "token": pa.int32(),
    "draft_top_ids": pa.list_(pa.int32()),
    "draft_top_probs": pa.list_(pa.float32()),
    "target_max_prob": pa.float64(),
    "target_entropy": pa.float64(),  # nats
    "target_log_moment": pa.float64(),  # of the target's law: sum p (log p)^2
    "overlap": pa.float64(),
    "target_prob": pa.float64(),  # of the committed token; the fields of `TokenChances`
    "draft_prob": pa.float64(),
    "target_prob_of_draft_best": pa.float64(),
    "draft_plain_rank": pa.int32(),
}
CHANCE_COLUMNS = ("target_prob", "draft_prob", "target_prob_of_draft_best", "draft_plain_rank")


RecordT = TypeVar("RecordT", bound=tuple[Any, ...])


def fields_of(*records: type[Any]) -> list[Any]:
    """Arrow fields of named tuples, one after the other."""
    return [
        pa.field(name, _arrow_type(name, hint)) for record in records for name, hint in get_type_hints(record).items()
    ]


def _arrow_type(name: str, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return pa.list_(pa.int32())
    if issubclass(hint, str):
        return pa.string()
    if hint is int:
        return pa.uint64() if name in UNSIGNED else pa.int64()
    return {bool: pa.bool_(), float: pa.float64()}[hint]


def _alignment_fields() -> list[Any]:
    signals = [pa.field(name, pa.float64()) for name in SIGNAL_COLUMNS]
    classes = [pa.field(name, pa.float64()) for name in CLASS_COLUMNS]
    extra = [pa.field(name, kind) for name, kind in EXTRA_COLUMNS.items()]
    return [
        pa.field("request_id", pa.int64()),
        pa.field("position", pa.int64()),
        extra[0],
        pa.field("rank", pa.int32()),  # null in the row after the last committed position
        *extra[1:3],
        *signals,
        *extra[3:],
        *classes,
        pa.field("tail_length", pa.int32()),  # signals in `tails` at this position; -1 when there is no such entry
        pa.field("tail_depth", pa.int32()),
    ]


def _with_version(fields: Iterable[Any]) -> Any:
    return pa.schema(list(fields), metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


SCHEMAS: Mapping[str, Any] = {
    "ops": _with_version(fields_of(Op)),
    "rounds": _with_version(fields_of(Round, RoundTimes)),
    "requests": _with_version(fields_of(RequestRecord)),
    "alignment": _with_version(_alignment_fields()),
    "tails": _with_version(
        [
            pa.field("request_id", pa.int64()),
            pa.field("position", pa.int64()),
            pa.field("depth", pa.int32()),
            pa.field("max_prob", pa.float64()),
            pa.field("entropy", pa.float64()),
            pa.field("margin", pa.float64()),
        ]
    ),
}


# Version 1 said in the kind of an operation when it happened; looks and branches of a round always were beside.
_KINDS_OF_VERSION_1 = {"verify_beside": "verify", "read_ahead": "read"}
_BESIDE_IN_VERSION_1 = ("verify_beside", "read_ahead", "look", "branch")


def upgraded(table: Any, name: str, version: int) -> Any:
    """A table of an older schema version, one of READABLE_VERSIONS, with the columns of this one."""
    if version == 1 and name == "ops":
        kinds = table.column("kind").to_pylist()
        place = SCHEMAS[name].get_field_index("is_beside")
        table = table.add_column(place, "is_beside", pa.array([kind in _BESIDE_IN_VERSION_1 for kind in kinds]))
        new = pa.array([_KINDS_OF_VERSION_1.get(kind, kind) for kind in kinds], pa.string())
        table = table.set_column(table.schema.get_field_index("kind"), "kind", new)
    return table


def table_of(name: str, rows: Sequence[tuple[Any, ...]]) -> Any:
    """Rows of plain values, one tuple a row in the order of the schema, as an arrow table."""
    schema = SCHEMAS[name]
    columns: Sequence[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    if len(columns) != len(schema):
        raise ValueError(f"a row of {name} has {len(columns)} values for {len(schema)} columns {schema.names}.")
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"a row of {name} does not fit its columns: {error}.") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def records_of(table: Any, record: type[RecordT]) -> list[RecordT]:
    """The rows of a table as named tuples of one type, with enums and tuples restored."""
    columns = []
    for name, hint in get_type_hints(record).items():
        values = table.column(name).to_pylist()
        if get_origin(hint) is tuple:
            values = [tuple(value) for value in values]
        elif issubclass(hint, enum.Enum):
            members = {str(member.value): member for member in hint}
            values = [members[value] for value in values]
        columns.append(values)
    return [record(*row) for row in zip(*columns, strict=True)]


def alignment_of(trace: RequestTrace, extra: Mapping[str, Any]) -> Any:
    """The alignment rows of one request: one a committed position, and one after the last of them.

    extra: of EXTRA_COLUMNS, one entry a committed position (2-D arrays for the lists).
    """
    num = trace.num_tokens
    if trace.known_ranks is not None:  # read again, its ranks would pass for exact ones
        raise ValueError(f"request {trace.request_id} knows its ranks in part only; a run folder cannot say so.")
    for name, values in extra.items():
        if name not in EXTRA_COLUMNS:
            raise ValueError(f"alignment has no column {name!r}; it takes {', '.join(EXTRA_COLUMNS)}.")
        if len(values) != num:
            raise ValueError(
                f"column {name!r} of request {trace.request_id} has {len(values)} entries for {num} positions."
            )
    schema = SCHEMAS["alignment"]
    lengths = [len(trace.tails[position]) if position in trace.tails else -1 for position in range(num + 1)]
    columns: dict[str, Any] = {
        "request_id": np.full(num + 1, trace.request_id),
        "position": np.arange(num + 1),
        "rank": trace.ranks,
        "tail_length": lengths,
        "tail_depth": np.full(num + 1, trace.tail_depth),
        **extra,
    }
    if trace.signals:
        columns.update(zip(SIGNAL_COLUMNS, zip(*trace.signals, strict=True), strict=True))
    if trace.chances:
        columns.update(zip(CHANCE_COLUMNS, zip(*trace.chances, strict=True), strict=True))
    if trace.class_probs:
        columns.update(zip(CLASS_COLUMNS, zip(*trace.class_probs, strict=True), strict=True))
    return pa.Table.from_arrays(
        [_padded(columns.get(field.name, ()), field.type, num + 1) for field in schema], schema=schema
    )


def _padded(values: Any, kind: Any, num: int) -> Any:
    """An arrow array of `num` entries, nulls after the given ones."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
        array = pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), kind.value_type))
    else:
        array = pa.array(values, kind)
    return pa.concat_arrays([array, pa.nulls(num - len(array), kind)])


def tails_of(trace: RequestTrace) -> Any:
    """The off-path signals of one request, one row a drafted token."""
    schema = SCHEMAS["tails"]
    positions: list[int] = []
    depths: list[int] = []
    signals: list[Signal] = []
    for position, tail in trace.tails.items():
        if not 0 <= position <= trace.num_tokens:
            raise ValueError(
                f"request {trace.request_id} has a tail at position {position}, outside 0 to {trace.num_tokens}."
            )
        positions += [position] * len(tail)
        depths += range(len(tail))
        signals += tail
    values = list(zip(*signals, strict=True)) if signals else [(), (), ()]
    columns = [[trace.request_id] * len(positions), positions, depths, *values]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def trace_of(request: RequestRecord, alignment: Any, tails: Any, *, class_window: int = 0) -> RequestTrace:
    """One request's trace from its own alignment and tail rows, the opposite of `alignment_of` and `tails_of`.

    Raises ValueError when rows are missing.
    """
    alignment = alignment.sort_by("position")
    tails = tails.sort_by([("position", "ascending"), ("depth", "ascending")])
    num = len(alignment) - 1
    if num < 1 or alignment.column("position").to_pylist() != list(range(num + 1)):
        raise ValueError(f"request {request.request_id} lacks alignment rows ({num + 1} are here).")
    lengths = alignment.column("tail_length").to_pylist()
    rows = iter(_tuples(tails, ("max_prob", "entropy", "margin")))
    if len(tails) != sum(max(0, length) for length in lengths):
        raise ValueError(f"request {request.request_id} lacks tail rows ({len(tails)} are here).")
    recorded = {
        position: tuple(Signal(*next(rows)) for _ in range(length))
        for position, length in enumerate(lengths)
        if length >= 0
    }
    has_signals = alignment.column(SIGNAL_COLUMNS[0])[0].is_valid
    has_chances = all(alignment.column(name)[0].is_valid for name in CHANCE_COLUMNS)
    has_classes = alignment.column(CLASS_COLUMNS[0])[0].is_valid
    return RequestTrace(
        request_id=request.request_id,
        prompt_id=request.prompt_id,
        num_prompt_tokens=request.num_prompt_tokens,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        finish_reason=FinishReason(request.finish_reason),
        ranks=tuple(alignment.column("rank").to_pylist()[:num]),
        signals=tuple(Signal(*row) for row in _tuples(alignment, SIGNAL_COLUMNS)[:num]) if has_signals else (),
        tails=recorded,
        tail_depth=alignment.column("tail_depth")[0].as_py(),
        class_probs=tuple(_tuples(alignment, CLASS_COLUMNS)) if has_classes else (),
        class_window=class_window if has_classes else 0,
        chances=tuple(TokenChances(*row) for row in _tuples(alignment, CHANCE_COLUMNS)[:num]) if has_chances else (),
    )


def _tuples(table: Any, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))

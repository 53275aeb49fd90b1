"""What the values of a run's tables must be: a damaged or edited file is refused by name, column, row and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from traces.folder.tables import CLASS_COLUMNS, SIGNAL_COLUMNS

MEASURED = ("ops", "rounds", "requests")  # tables in which every value is known
ROUNDING = 1e-3  # by which probabilities of low-precision models may leave [0, 1]
_NEVER_NULL = ("request_id", "position", "tail_length", "tail_depth", "depth", "max_prob", "entropy", "margin")
_MAY_BE_INFINITE = ("draft_margin", "margin")  # of a law of one token
_MAY_BE_UNKNOWN = (*SIGNAL_COLUMNS, "max_prob", "entropy", "margin")  # not-a-number, as UNKNOWN_SIGNAL
_INF = float("inf")
MAX_TIME_S = 1e12  # some thirty thousand years; of larger times sums and squares say nothing
_PROBABILITY = (-ROUNDING, 1 + ROUNDING)
_LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("position", "rank", "token", "tail_depth", "depth"), (0, _INF)),
    **dict.fromkeys(("draft_max_prob", "target_max_prob", "overlap", "max_prob", *CLASS_COLUMNS), _PROBABILITY),
    **dict.fromkeys(("draft_entropy", "target_entropy", "target_log_moment", "entropy"), (-ROUNDING, _INF)),
    **dict.fromkeys(("draft_margin", "margin"), (0, _INF)),
    "tail_length": (-1, _INF),
}


def problem_of(table: Any, name: str) -> str:
    """The first value of a table that cannot be, in words; empty where there is none."""
    for field in table.schema:
        column = table.column(field.name)
        if column.null_count and (name in MEASURED or field.name in _NEVER_NULL):
            return f"{column.null_count} missing values in {field.name}"
        low, high = (-_INF, _INF) if name in MEASURED else _LIMITS.get(field.name, (-_INF, _INF))
        if field.name.endswith("_s"):
            low, high = -MAX_TIME_S, MAX_TIME_S
        is_float = pa.types.is_floating(field.type)
        if not is_float and not pa.types.is_integer(field.type):
            continue
        valid = column.is_valid().to_numpy()
        values = column.drop_null().to_numpy()
        wrong = (values < low) | (values > high)
        if is_float:
            wrong |= np.isnan(values) & (field.name not in _MAY_BE_UNKNOWN)
            wrong |= np.isinf(values) & (field.name not in _MAY_BE_INFINITE)
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            return f"{values[index]} in {field.name}, row {int(np.flatnonzero(valid)[index])}"
    return _gap_in_alignment(table) if name == "alignment" else ""


def _gap_in_alignment(table: Any) -> str:
    """Ranks are missing in the row after a request's last position only, its signals there or in all of its rows, its classes
    in all rows or in none."""
    ids = table.column("request_id").to_numpy()
    if not len(ids):
        return ""
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    is_last = np.r_[ids[1:] != ids[:-1], True]
    first = np.repeat(starts, np.diff(np.r_[starts, len(ids)]))  # of each row's request

    def is_known(column: str) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = pc.is_valid(table.column(column)).to_numpy()
        return known

    has_rank, has_signals, has_classes = (is_known(name) for name in ("rank", SIGNAL_COLUMNS[0], CLASS_COLUMNS[0]))
    gaps = {"rank": ~has_rank & ~is_last}
    gaps |= {name: (is_known(name) != has_signals[first]) & ~is_last for name in SIGNAL_COLUMNS}
    gaps |= {name: is_known(name) != has_classes[first] for name in CLASS_COLUMNS}
    for name, gap in gaps.items():
        if gap.any():
            return f"a missing value in {name}, row {int(np.flatnonzero(gap)[0])}, amid known ones"
    return ""

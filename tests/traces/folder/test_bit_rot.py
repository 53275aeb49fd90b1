"""Damaged tables are refused, never read as other data."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.analysis.made_up_run import write_run
from traces.folder.run import Run, RunError, read_run

TABLES = ("ops", "rounds", "requests", "alignment", "tails")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", num_requests=4, num_tokens=20)


def _frame(run: Run, name: str) -> str:
    return str(getattr(run, name).to_csv())


def test_no_flipped_bit_is_read_as_other_data(whole: Path) -> None:
    rng = random.Random(0)
    wanted = {name: _frame(read_run(whole), name) for name in TABLES}
    num_refused = 0
    for _ in range(150):
        name = rng.choice(TABLES)
        path = whole / f"{name}.parquet"
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert _frame(read_run(whole), name) == wanted[name]  # a bit that no reader needs
        except RunError:
            num_refused += 1
        finally:
            path.write_bytes(data)
    assert num_refused > 60


@pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "column"), [("ops", "end_s"), ("requests", "top_p"), ("requests", "finish_s")])
def test_missing_and_infinite_values_are_refused(whole: Path, name: str, column: str, value: float | None) -> None:
    path = whole / f"{name}.parquet"
    data, table = path.read_bytes(), pq.read_table(path)
    values = table.column(column).to_pylist()
    values[1:2] = [value]
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, table.schema.field(index), pa.array(values, pa.float64())), path)
    try:
        with pytest.raises(RunError, match=rf"{name}\.parquet has .*{column}"):
            getattr(read_run(whole), name)
    finally:
        path.write_bytes(data)


def _changed(table: pa.Table, column: str, row: int, value: float | None) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("alignment", "rank", -1),
        ("alignment", "rank", None),
        ("alignment", "position", -4),
        ("alignment", "tail_length", -2),
        ("alignment", "tail_length", None),
        ("alignment", "tail_depth", -1),
        ("alignment", "draft_max_prob", 1.5),
        ("alignment", "draft_max_prob", None),
        ("alignment", "draft_entropy", -1.0),
        ("alignment", "draft_entropy", np.inf),
        ("alignment", "draft_margin", -0.5),
        ("alignment", "class_reject", 0.5),
        ("alignment", "target_entropy", np.nan),
        ("alignment", "overlap", 7.0),
        ("tails", "max_prob", None),
        ("tails", "entropy", np.inf),
        ("tails", "margin", -1.0),
        ("tails", "depth", -1),
        ("tails", "position", None),
    ],
)
def test_ranks_and_signals_that_cannot_be_are_refused(whole: Path, name: str, column: str, value: float | None) -> None:
    path = whole / f"{name}.parquet"
    data = path.read_bytes()
    pq.write_table(_changed(pq.read_table(path), column, 3, value), path)
    try:
        with pytest.raises(RunError, match=rf"{name}\.parquet has .* in {column}") as refusal:
            read_run(whole).traces()
        assert "\n" not in str(refusal.value)
    finally:
        path.write_bytes(data)


def test_the_margin_of_a_law_of_one_token_is_infinite(whole: Path) -> None:
    path = whole / "alignment.parquet"
    data = path.read_bytes()
    pq.write_table(_changed(pq.read_table(path), "draft_margin", 3, np.inf), path)
    try:
        assert read_run(whole).traces()[0].signals[3].margin == np.inf
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize(("name", "column"), [("rounds", b"num_accepted"), ("requests", b"prompt_id"), ("ops", b"op")])
def test_names_of_columns_that_are_no_text_are_refused(whole: Path, name: str, column: bytes) -> None:
    path = whole / f"{name}.parquet"
    data = path.read_bytes()
    path.write_bytes(data.replace(column, b"\xdf" + column[1:]))
    try:
        with pytest.raises(RunError, match=rf"{name}\.parquet"):
            getattr(read_run(whole), name)
    finally:
        path.write_bytes(data)


def test_texts_that_are_none_are_refused(whole: Path) -> None:
    path = whole / "requests.parquet"
    data, table = path.read_bytes(), pq.read_table(path)
    index = table.schema.get_field_index("prompt_id")
    texts = pa.array([b"\xdf(" for _ in range(len(table))], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(index, table.schema.field(index), texts), path)
    try:
        with pytest.raises(RunError, match=r"requests\.parquet"):
            read_run(whole).requests.prompt_id.tolist()
    finally:
        path.write_bytes(data)

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

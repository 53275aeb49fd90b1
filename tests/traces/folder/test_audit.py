"""A whole run passes; whatever is lost, doubled or changed in one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.explore.simulation import simulate_run
from sim.decoding.policies.catalog import parse_policies
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.folder.audit import audit
from traces.folder.run import RunError
from traces.folder.tables import SCHEMAS

VERSION_1 = Path(__file__).parents[2] / "data" / "run_v1"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two requests under a policy that hedges and loses tokens in every way."""
    folder = tmp_path_factory.mktemp("audit")
    write_run(folder / "run", num_requests=4, num_tokens=30)
    simulate_run(folder / "run", folder / "out", parse_policies(["saguaro:draft_length=3,fan_out=2"]))
    (run,) = (folder / "out").iterdir()
    return run


@pytest.fixture
def run(simulated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated, tmp_path / "run"))


def _change(folder: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Another table under checksums of its own, so that only the laws can see it."""
    path = folder / f"{name}.parquet"
    table = pa.Table.from_pandas(change(pq.read_table(path).to_pandas()), SCHEMAS[name], preserve_index=False)
    pq.write_table(table.replace_schema_metadata(SCHEMAS[name].metadata), path)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "checksums": {}}))


def _set(column: str, row: int, by: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table.index[row], column] += by
        return table

    return change


def test_a_whole_run_passes(run: Path) -> None:
    found = audit(run)
    assert (found.problems, found.is_complete, found.has_checksums, found.num_requests) == ((), True, True, 4)
    old = audit(VERSION_1)
    assert (old.problems, old.has_checksums) == ((), False)


@pytest.mark.parametrize(
    ("name", "change", "law"),
    [
        ("rounds", _set("round", 3, 1), "not numbered from 0"),
        ("rounds", _set("position", 3, 1), "does not begin where the one before it ended"),
        ("rounds", _set("num_accepted", 2, 50), "accepted more tokens than were submitted"),
        ("rounds", _set("num_emitted", 2, 50), "emitted more than it accepted and one"),
        ("rounds", lambda table: table.drop(index=table.index[-1]), "does not end with its last round"),
        ("rounds", lambda table: table.assign(is_finished=True), "does not end with its last round"),
        ("rounds", _set("num_drafted", 0, -90), "lost more drafted tokens than were drafted"),
        ("rounds", _set("end_s", 1, -1000), "ends before it begins"),
        ("rounds", _set("end_s", -1, 1000), "has a round after its finish"),
        ("rounds", _set("request_id", -1, 77), "has rounds, but is not among the requests"),
        ("requests", _set("num_output_tokens", 1, 1), "emitted another number of tokens than its output has"),
        ("requests", lambda table: table.iloc[1:], "has operations, but is not among the requests"),
        ("requests", lambda table: pd.concat([table, table.iloc[:1]]), "appears twice"),
        ("ops", _set("start_s", 0, -1000), "has an operation before its arrival"),
        ("ops", _set("end_s", -1, 1000), "has an operation after its finish"),
    ],
)
def test_what_is_not_conserved_is_named(
    run: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame], law: str
) -> None:
    _change(run, name, change)
    assert any(law in problem for problem in audit(run).problems), audit(run).problems


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "ops.parquet"])
def test_a_changed_or_missing_file_is_named(run: Path, name: str) -> None:
    path = run / name
    if name == "ops.parquet":
        table = pq.read_table(path)
        pq.write_table(table.slice(0, len(table) - 1), path)
    else:
        path.write_text(path.read_text() + " ")
    assert f"{name} is missing or was changed after the run" in audit(run).problems
    if name == "summary.json":
        path.unlink()
        assert f"{name} is missing or was changed after the run" in audit(run).problems


def test_a_checksum_reaches_no_file_outside_of_the_run(run: Path) -> None:
    outside = run.parent / "outside.txt"
    outside.write_text("mine")
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**meta, "checksums": {"../outside.txt": "0"}}))
    assert audit(run).problems == ("../outside.txt is missing or was changed after the run",)


def test_an_unreadable_table_is_one_of_the_problems(run: Path) -> None:
    (run / "rounds.parquet").write_bytes(b"PAR1")
    found = audit(run)
    assert found.num_requests is None
    assert any("rounds.parquet" in problem and "damaged" in problem for problem in found.problems)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        audit(tmp_path / "nowhere")


def test_the_command_says_it_in_lines_and_by_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", str(run)) == 0
    assert "all is well." in capsys.readouterr().out
    _change(run, "requests", lambda table: table.iloc[1:])
    assert call("check", str(run)) == 1
    assert "is not among the requests" in " ".join(capsys.readouterr().out.split())

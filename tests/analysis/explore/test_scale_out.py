"""Every backend gives the same numbers bit for bit, and a worker that dies loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.explore.exploration import explore_study
from analysis.explore.work.scale_out import Workers, run_tasks
from analysis.study.study import Study
from sim.decoding.policies.own import import_own
from tests.analysis.made_up_run import write_run

distributed = pytest.importorskip("distributed")

LABELS = [
    f"{method}={length}"
    for length in range(1, 9)
    for method in ("fixed_length:draft_length", "pearl:draft_length", "confidence_stop:threshold=0.4,max_length")
]


OWN = """
from dataclasses import dataclass
from sim.decoding.policies.base import Defaults

@dataclass(frozen=True)
class EveryOther(Defaults):
    draft_length: int = 4

    def draft_more(self, seen, pending):
        return 0 if pending or seen.num_rounds % 2 else self.draft_length
"""


@pytest.fixture
def own_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Policies of a file in the working folder, where no worker looks."""
    (tmp_path / "only_here.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    monkeypatch.chdir(tmp_path)
    labels = [import_own(f"only_here:EveryOther(draft_length={length})") for length in (2, 3, 5)]
    return labels


def slow_square(number: int, folder: str) -> tuple[int, int]:
    """A task that tells where it runs, and takes long enough to be killed in."""
    (Path(folder) / f"{number}-{os.getpid()}").touch()
    time.sleep(0.3)
    return number * number, os.getpid()


@pytest.mark.parametrize("is_ahead", [True, False])
def test_workers_run_no_file_of_the_working_folder(is_ahead: bool, tmp_path: Path) -> None:
    """Also where a user's own program starts them: the folder is theirs, and may hold any names."""
    for name in ("analysis", "numbers", "selectors", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the users file ran')")
    script = (
        "from analysis.explore.work.scale_out import Workers, run_tasks, starting\n"
        f"with starting(pow, Workers(count=2 if {is_ahead} else 1)) as ready:\n"
        "    ready()\n"
        "    print(sorted(run_tasks(pow, [(2, 3), (3, 2)], Workers(count=2))))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[(0, 8), (1, 9)]", done.stderr[-2000:]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, worker_dashboard_address=None
    ) as started:
        yield started


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made-up") / "run", num_requests=8)


@pytest.mark.long
def test_a_killed_worker_loses_nothing(cluster: object, tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path)) for number in range(14)]
    dask = Workers(backend="dask", scheduler=cluster.scheduler_address)  # type: ignore[attr-defined]
    found: dict[int, int] = {}
    killed = 0
    for index, (square, worker) in run_tasks(slow_square, tasks, dask):
        found[index] = square
        if not killed:
            os.kill(worker, signal.SIGKILL)
            killed = worker
    assert found == {number: number * number for number in range(14)}
    runs = [path.name.split("-") for path in tmp_path.iterdir()]
    again = [number for number, worker in runs if worker == str(killed) and [n for n, _ in runs].count(number) > 1]
    assert again, "the killed worker had nothing in hand: the test has shown nothing."


@pytest.mark.long
def test_an_exploration_survives_a_killed_worker_bit_for_bit(
    cluster: object, run_dir: Path, tmp_path: Path, own_labels: list[str]
) -> None:
    study = Study(
        policies=[*LABELS, *own_labels, *(f"outcome_hedging:max_branches={count}" for count in range(1, 9))],
        policies_per_task=2,
    )
    address = cluster.scheduler_address  # type: ignore[attr-defined]
    with distributed.Client(address, set_as_default=False) as client:
        victim = next(iter(client.run(os.getpid).values()))
    reports: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if not reports and done > 1:
            os.kill(victim, signal.SIGKILL)
        if done > 1:
            reports.append(done)

    there = explore_study(
        run_dir, tmp_path / "dask", study, workers=Workers(backend="dask", scheduler=address), progress=kill_once
    )
    here = explore_study(run_dir, tmp_path / "here", study)
    assert reports, "no worker was killed: the test has shown nothing."
    pd.testing.assert_frame_equal(there.table, here.table, check_exact=True)
    assert there.rankings == here.rankings


def test_processes_give_the_same_bit_for_bit(run_dir: Path, tmp_path: Path, own_labels: list[str]) -> None:
    labels = [*LABELS, *own_labels]
    study = Study(policies=list(labels), policies_per_task=5)
    two = explore_study(run_dir, tmp_path / "two", study, workers=Workers(count=2))
    one = explore_study(run_dir, tmp_path / "one", study)
    pd.testing.assert_frame_equal(two.table, one.table, check_exact=True)
    other_tasks = explore_study(run_dir, tmp_path / "other", Study(policies=list(labels), policies_per_task=27))
    pd.testing.assert_frame_equal(
        other_tasks.table.sort_values("policy", ignore_index=True), one.table.sort_values("policy", ignore_index=True)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"count": 0}, "workers must be at least 1"),
        ({"backend": "dask"}, "needs --scheduler"),
        ({"backend": "threads"}, "unknown backend 'threads'"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "give --backend dask"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Workers(**settings)  # type: ignore[arg-type]


def test_a_scheduler_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    nowhere = Workers(backend="dask", scheduler="tcp://127.0.0.1:9", timeout_s=1)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(run_tasks(slow_square, [(1, str(tmp_path))], nowhere))

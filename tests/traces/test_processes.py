"""Cores by affinity and by quota; the path of processes that we start holds nothing of the user's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from traces.processes import _ROOT, import_path, num_cores, safe_children


def _limits(folder: Path, group: str, text: str, *, version: int = 2) -> tuple[Path, Path]:
    place = folder / group if version == 2 else folder / "cpu" / group
    place.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (place / "cpu.max").write_text(text)
    else:
        quota, period = text.split()
        (place / "cpu.cfs_quota_us").write_text(quota)
        (place / "cpu.cfs_period_us").write_text(period)
    own = folder / "own"
    own.write_text(f"0::/{group}\n" if version == 2 else f"3:cpu,cpuacct:/{group}\n")
    return folder, own


@pytest.mark.parametrize(
    ("group", "text", "version", "cores"),
    [
        ("", "max 100000", 2, None),
        ("", "100000 100000", 2, 1),
        ("", "50000 100000", 2, 1),
        ("", "250000 100000", 2, 2),
        ("a/b", "100000 100000", 2, 1),
        ("", "-1 100000", 1, None),
        ("", "100000 100000", 1, 1),
        ("a/b", "150000 100000", 1, 1),
        ("", "nonsense 0", 2, None),
        ("", "100000 0", 2, None),
    ],
)
def test_a_quota_limits_the_cores(tmp_path: Path, group: str, text: str, version: int, cores: int | None) -> None:
    free = num_cores(tmp_path / "nowhere", tmp_path / "nothing")
    wanted = free if cores is None else min(free, cores)
    assert num_cores(*_limits(tmp_path, group, text, version=version)) == wanted


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_affinity_limits_the_cores() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("how", ["-m", "-c"])
def test_children_do_not_run_files_of_the_working_folder(tmp_path: Path, how: str) -> None:
    (tmp_path / "numbers.py").write_text("raise SystemExit('the users file ran')")
    (tmp_path / "executor.py").write_text("raise SystemExit('the users file ran')")
    code = "import numbers" if how == "-c" else "fractions"
    with safe_children():
        done = subprocess.run([sys.executable, how, code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PYTHONSAFEPATH" not in os.environ


def test_the_path_of_our_processes_leaves_the_users_folders_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "elsewhere", *sys.path])
    path = import_path()
    assert "" not in path
    assert str(tmp_path) not in path
    assert str(_ROOT) in path
    monkeypatch.setattr(sys, "path", ["elsewhere"])
    assert import_path() == [str(_ROOT), "elsewhere"]


def test_a_process_ends_with_its_parent_whatever_it_is_doing(tmp_path: Path) -> None:
    """The child computes without a pause, as one does that imports torch; a place that it named goes with it."""
    place = tmp_path / "place"
    place.mkdir()
    child = (
        "import os, sys; from pathlib import Path; from traces.processes import clear_after, end_with;"
        f"clear_after(Path({str(place)!r})); end_with(os.getppid()); print(os.getpid(), flush=True)\n"
        "while True: pass"
    )
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=sys.stdout)"
    parent = f"import subprocess, sys; {start}; sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    process.kill()
    process.wait()
    assert process.stdout.read() == ""  # its end: nobody holds the pipe any more
    assert not place.exists()

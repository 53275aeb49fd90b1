"""A worker that was started ahead is the one that serves, and one that nobody needed goes with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from executor.pair import Session
from executor.remote.starting import start_ahead, take_worker
from tests.settings import pair_settings


def test_the_next_session_takes_the_worker_that_was_started_ahead() -> None:
    start_ahead()
    start_ahead()  # at most one
    ahead = take_worker()
    assert ahead.process.poll() is None
    ahead.pipe.close()  # not needed after all: it ends by itself
    assert ahead.process.wait(120) == 0
    start_ahead()
    from executor.remote import starting

    (waiting,) = starting._AHEAD
    with Session(pair_settings(capacity=256)) as session:
        assert session.target.pid == waiting.process.pid  # type: ignore[attr-defined]  # a client's
        assert not starting._AHEAD


def test_a_worker_that_nobody_took_goes_with_its_parent_at_once() -> None:
    script = (
        "from executor.remote import starting\n"
        "starting.start_ahead()\n"
        "print(starting._AHEAD[0].process.pid, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert not os.path.exists(f"/proc/{int(ended.stdout)}")


def test_a_worker_runs_no_file_of_the_working_folder(tmp_path: Path) -> None:
    """Also where a user's own program starts it, in whose environment nothing of ours is set."""
    for name in ("executor", "json", "numbers", "traces"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the users file ran')")
    script = (
        "from executor.remote.starting import start_worker\n"
        "worker = start_worker()\n"
        "worker.pipe.close()\n"
        "code = worker.process.wait(120)\n"
        "worker.stderr.seek(0)\n"
        "print(code, worker.stderr.read().decode())\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, "-P", "-c", script]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.getcwd()},
        check=True,
    )
    assert ended.stdout.strip() == "0"


def test_starting_ahead_imports_nothing_heavy() -> None:
    script = "import sys, executor.remote.starting; print('torch' in sys.modules, 'numpy' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.split() == ["False", "False"]

"""Signals give their exit codes, leave a readable prefix, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.analysis.made_up_run import write_run
from traces.folder.run import read_run

SCRIPT = "from analysis.cli.main import main; main()"
LONGEST_S = 120.0


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    def listen() -> None:  # a test run in the background may have been told to ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen,
    )


def _wait(until: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not until():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _of_session(leader: int) -> list[psutil.Process]:
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return members


def _check_nothing_is_left(leader: int) -> None:
    deadline = time.monotonic() + 10
    while members := _of_session(leader):
        if time.monotonic() > deadline:
            for member in members:
                member.kill()
            raise AssertionError(f"still there: {members}")
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("is_loading", [True, False], ids=["loading", "recording"])
def test_a_signal_while_recording(tmp_path: Path, number: int, to_group: bool, is_loading: bool) -> None:
    for name in ("executor.py", "numbers.py"):  # the user's own files are not ours to run
        (tmp_path / name).write_text("raise SystemExit('the users file ran')")
    process = _start(tmp_path, "record", "--output-dir", "run", "--num-prompts", "60")
    parts = tmp_path / "run" / "parts"
    if is_loading:
        _wait(lambda: parts.is_dir() and len(_of_session(process.pid)) > 1, process)
    else:
        _wait(lambda: any(path.name.isdecimal() for path in parts.glob("*")), process)
    (os.killpg if to_group else os.kill)(process.pid, number)
    error = process.communicate(timeout=LONGEST_S)[1]
    assert process.returncode == 128 + number, error
    assert error.count("\n") == 1, error
    assert "stays readable" in error
    _check_nothing_is_left(process.pid)
    if not is_loading:
        assert not read_run(tmp_path / "run").is_complete


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_exploring_with_workers(tmp_path: Path, number: int) -> None:
    write_run(tmp_path / "run", num_requests=40)
    arguments = ["explore", "--run", "run", "--output-dir", "out", "--workers", "2"]
    process = _start(tmp_path, *arguments)
    _wait(lambda: len(_of_session(process.pid)) >= 3, process)  # itself and two workers
    time.sleep(1.0)
    process.send_signal(number)
    error = process.communicate(timeout=LONGEST_S)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
    _check_nothing_is_left(process.pid)


def test_an_inner_failure_is_1_and_a_usage_error_2(tmp_path: Path) -> None:
    for arguments, code in [(["simulate", "--run", "nowhere", "--output-dir", "o"], 1), (["record", "--nonsense"], 2)]:
        process = _start(tmp_path, *arguments)
        error = process.communicate(timeout=LONGEST_S)[1]
        assert (process.returncode, error.count("\n")) == (code, 1), error

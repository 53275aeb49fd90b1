"""Signals give their exit codes, leave a readable prefix, and leave no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.analysis.ended.processes import LONGEST_S, check_nothing_is_left, of_session, start, wait_until
from tests.analysis.made_up_run import write_run
from traces.folder.run import read_run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("is_loading", [True, False], ids=["loading", "recording"])
def test_a_signal_while_recording(tmp_path: Path, number: int, to_group: bool, is_loading: bool) -> None:
    for name in ("executor.py", "numbers.py"):  # the user's own files are not ours to run
        (tmp_path / name).write_text("raise SystemExit('the users file ran')")
    process = start(tmp_path, "record", "--output-dir", "run", "--num-prompts", "60")
    parts = tmp_path / "run" / "parts"
    if is_loading:
        wait_until(lambda: parts.is_dir() and len(of_session(process.pid)) > 1, process)
    else:
        wait_until(lambda: any(path.name.isdecimal() for path in parts.glob("*")), process)
    (os.killpg if to_group else os.kill)(process.pid, number)
    error = process.communicate(timeout=LONGEST_S)[1]
    assert process.returncode == 128 + number, error
    assert error.count("\n") == 1, error
    assert "stays readable" in error
    check_nothing_is_left(process.pid)
    if not is_loading:
        assert not read_run(tmp_path / "run").is_complete


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_exploring_with_workers(tmp_path: Path, number: int) -> None:
    write_run(tmp_path / "run", num_requests=40)
    arguments = ["explore", "--run", "run", "--output-dir", "out", "--workers", "2"]
    process = start(tmp_path, *arguments)
    wait_until(lambda: len(of_session(process.pid)) >= 3, process)  # itself and two workers
    time.sleep(1.0)
    process.send_signal(number)
    error = process.communicate(timeout=LONGEST_S)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
    check_nothing_is_left(process.pid)


def test_an_inner_failure_is_1_and_a_usage_error_2(tmp_path: Path) -> None:
    for arguments, code in [(["simulate", "--run", "nowhere", "--output-dir", "o"], 1), (["record", "--nonsense"], 2)]:
        process = start(tmp_path, *arguments)
        error = process.communicate(timeout=LONGEST_S)[1]
        assert (process.returncode, error.count("\n")) == (code, 1), error

"""Every signal that ends a command gives its exit code and one line, and leaves the handlers as they were."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from tests.analysis.command import call

CASES = {
    "ctrl-c": ([signal.SIGINT], 130, "interrupted"),
    "term": ([signal.SIGTERM], 143, "ended by SIGTERM"),
    "hang-up": ([signal.SIGHUP], 129, "ended by SIGHUP"),
    "term, then ctrl-c": ([signal.SIGTERM, signal.SIGINT], 143, "ended by SIGTERM"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_is_an_exit_code_and_a_line(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sent, code, told = CASES[case]

    def interrupted(path: object) -> NoReturn:
        try:
            os.kill(os.getpid(), sent[0])
            raise AssertionError("the signal was not heard")
        finally:  # workers and run folders are closed here
            for number in sent[1:]:
                os.kill(os.getpid(), number)
            closed.append(True)

    closed: list[bool] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr("traces.folder.run.read_run", interrupted)
    assert call("calibrate", "--run", str(tmp_path)) == code
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
    assert closed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_failure_inside_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("traces.folder.run.read_run", fail)
    assert call("calibrate", "--run", str(tmp_path)) == 1

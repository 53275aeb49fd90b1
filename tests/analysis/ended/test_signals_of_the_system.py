"""Every signal that ends a command gives its exit code and one line, and leaves the handlers as they were."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.analysis.command import call

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CASES = {
    "ctrl-c": ([signal.SIGINT], 130, "interrupted"),
    "term": ([signal.SIGTERM], 143, "ended by SIGTERM"),
    "hang-up": ([signal.SIGHUP], 129, "ended by SIGHUP"),
    "term, then ctrl-c": ([signal.SIGTERM, signal.SIGINT], 143, "ended by SIGTERM"),
}


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """What started the tests may have had signals ignored: nohup does, and a shell for its background jobs."""
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for number, handler in zip(SIGNALS, usual, strict=True)]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


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
    before = [signal.getsignal(number) for number in SIGNALS]
    monkeypatch.setattr("traces.folder.run.read_run", interrupted)
    assert call("calibrate", "--run", str(tmp_path)) == code
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
    assert closed
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_failure_inside_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("traces.folder.run.read_run", fail)
    assert call("calibrate", "--run", str(tmp_path)) == 1


def test_what_a_command_starts_leaves_the_working_folder_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries start Python processes of their own, whose path would begin with that folder."""

    def look(path: object) -> NoReturn:
        seen.append(os.environ.get("PYTHONSAFEPATH"))
        raise ValueError("enough")

    seen: list[str | None] = []
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr("traces.folder.run.read_run", look)
    assert call("calibrate", "--run", str(tmp_path)) == 1
    assert seen == ["1"]
    assert "PYTHONSAFEPATH" not in os.environ

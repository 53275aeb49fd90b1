"""A disk that is full and a folder that nobody may write to: one line that names the file, and no half of one."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.analysis.command import call
from tests.analysis.ended.processes import LONGEST_S, SCRIPT
from tests.analysis.made_up_run import write_run
from traces.folder.audit import audit
from traces.folder.run import read_run

NOBODY = 65534
TRAFFIC = ("--request-rate", "4", "--prompt-tokens", "50", "--output-tokens", "20", "--acceptance", "0.75")
SHORT = ("--num-prompts", "100", "--max-length", "1", "--precision", "0.9", "--goodput", "ttft:500 tpot:20")
HARDWARE = ("--target", "llama-3.1-8b", "--draft", "llama-68m", "--hardware", "h100")
COMMANDS = {
    "calibrate": ("calibrate", "--run", "RUN", "--output", "OUT/new.json"),
    "explore": ("explore", "--run", "RUN", "--policy", "pearl:draft_length=2", "--output-dir", "OUT/new"),
    "simulate": ("simulate", "--run", "RUN", "--policy", "pearl:draft_length=2", "--output-dir", "OUT/new"),
    "report": ("report", "RUN", "--output", "OUT/new.html"),
    "timeline": ("timeline", "RUN", "--output", "OUT/new.json"),
    "plan": ("plan", *TRAFFIC, *SHORT, "--output-dir", "OUT/new"),
    "roofline": ("roofline", *HARDWARE, "--output", "OUT/new.json"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("no_room") / "run", num_requests=2, num_tokens=12)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_does_not_fit_is_a_line_and_leaves_no_half(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _files_of_at_most(400):  # the smallest of them fit
        code = call(*_words(command, run, tmp_path))
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (1, 1), line
    assert str(tmp_path / "new") in line
    assert "File too large; free some space" in line
    assert not list(tmp_path.rglob("*.tmp")), "half a file stays"
    assert not list(tmp_path.rglob("summary.json")), "it would be taken for whole"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_a_line(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shut = Path(tempfile.mkdtemp())  # the folders of pytest let nobody else in
    try:
        mine = Path(shutil.copytree(run, shut / "run"))
        out = shut / "out"
        out.mkdir()
        for place in (out, shut):
            place.chmod(0o555)
        with _as_nobody():
            code = call(*_words(command, mine, out))
        line = capsys.readouterr().err
        assert (code, line.count("\n")) == (1, 1), line
        assert str(out / "new") in line
        assert "Permission denied; name another" in line
    finally:
        shut.chmod(0o755)
        shutil.rmtree(shut)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["192k", "1m"])
def test_a_full_disk_while_recording_loses_nothing_and_the_run_goes_on_elsewhere(size: str, tmp_path: Path) -> None:
    """The disk is a small one in memory that only the command sees; with the larger size it is the end that does not fit."""
    command = 'mount -t tmpfs -o size=$0 none full && { "$@"; code=$?; cp -r full/run kept; exit $code; }'
    recording = ("record", "--num-prompts", "14", "--max-new-tokens", "48", "--ignore-eos", "--output-dir")
    (tmp_path / "full").mkdir()
    words = ["unshare", "-rm", "sh", "-c", command, size, sys.executable, "-P", "-c", SCRIPT, *recording, "full/run"]
    done = subprocess.run(words, **_quietly(tmp_path), check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this system lets nobody mount a small disk")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "No space left on device" in done.stderr
    assert "stays readable" in done.stderr
    found = audit(tmp_path / "kept")
    assert found.problems == ()
    assert not found.is_complete
    assert found.num_requests
    before = read_run(tmp_path / "kept").requests
    again = [sys.executable, "-P", "-c", SCRIPT, *recording, "kept", "--resume"]
    resumed = subprocess.run(again, **_quietly(tmp_path), check=False)
    assert resumed.returncode == 0, resumed.stderr
    run = read_run(tmp_path / "kept")
    assert run.is_complete
    assert run.requests.head(len(before)).equals(before)
    assert audit(tmp_path / "kept").problems == ()


def _words(command: str, run: Path, out: Path) -> list[str]:
    return [word.replace("RUN", str(run)).replace("OUT", str(out)) for word in COMMANDS[command]]


def _quietly(folder: Path) -> dict[str, object]:
    path = os.pathsep.join(path for path in sys.path if path)
    return {
        "cwd": folder,
        "env": {**os.environ, "PYTHONPATH": path},
        "capture_output": True,
        "text": True,
        "timeout": 3 * LONGEST_S,
    }


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may write anywhere: for a while this process is another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)

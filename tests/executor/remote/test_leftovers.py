"""What a killed process leaves in shared memory goes when the next one starts; what is in use stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from traces import shared_memory
from traces.shared_memory import make_meeting_place

OLD_S = time.time() - 3600


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where meeting places are made."""
    monkeypatch.setattr(shared_memory.os, "access", lambda *_: False)
    monkeypatch.setattr(shared_memory.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def _left(base: Path, name: str, *, is_old: bool, with_lock: bool = True) -> Path:
    folder = base / f"specbranch-{name}"
    folder.mkdir()
    (folder / "from-0").write_bytes(bytes(8))
    if with_lock:
        (folder / "maker").touch()
    if is_old:
        os.utime(folder, (OLD_S, OLD_S))
    return folder


def test_old_folders_go_and_young_or_used_or_others_stay(base: Path) -> None:
    old, young = _left(base, "old", is_old=True), _left(base, "young", is_old=False)
    bare = _left(base, "bare", is_old=True, with_lock=False)
    used, others = _left(base, "used", is_old=True), base / "another-program"
    others.mkdir()
    os.utime(others, (OLD_S, OLD_S))
    with (used / "maker").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place, own = make_meeting_place()
    assert place.parent == base
    assert not old.exists()
    assert not bare.exists()
    assert young.exists()
    assert used.exists()
    assert others.exists()
    os.utime(place, (OLD_S, OLD_S))
    second, other = make_meeting_place()
    assert place.exists()  # its maker holds the lock
    own.close()
    other.close()
    third, last = make_meeting_place()
    assert not place.exists()
    assert second.exists()  # young
    last.close()
    assert third.exists()


def test_semaphores_of_a_maker_that_is_gone_go_with_its_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of joblib, whose tracker was killed as well."""
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path)
    for name in ("sem.loky-12-a", "sem.loky-12-b", "sem.loky-123-a", "sem.mp-12"):
        (tmp_path / name).touch()
    old = _left(base, "old", is_old=False)
    (old / "maker").write_text("12")
    os.utime(old, (OLD_S, OLD_S))
    _, lock = make_meeting_place()
    lock.close()
    assert sorted(path.name for path in tmp_path.glob("sem.*")) == ["sem.loky-123-a", "sem.mp-12"]


@pytest.mark.long
def test_a_folder_whose_processes_were_all_killed_goes_with_the_next_start() -> None:
    """Parent and worker are killed at once, so that neither can clear up."""
    script = (
        "from executor.pair import Session\n"
        "from executor.models.settings import EngineSettings, PairSettings\n"
        "session = Session(PairSettings(engine=EngineSettings(capacity=256)))\n"
        "print(session.target.pid, session.target._meeting_place, flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    worker, place = process.stdout.readline().split()
    os.kill(int(worker), signal.SIGSTOP)  # it is not to notice that its parent is gone
    process.kill()
    process.wait()
    os.kill(int(worker), signal.SIGKILL)
    process.communicate()
    folder = Path(place)
    assert folder.exists()
    os.utime(folder, (OLD_S, OLD_S))
    made, lock = make_meeting_place()
    assert not folder.exists()
    lock.close()
    for file in made.iterdir():
        file.unlink()
    made.rmdir()

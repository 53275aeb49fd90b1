"""Folders for what the processes of one command share, and what becomes of them when all of these are killed at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

SHARED = Path("/dev/shm")
_PREFIX, _LOCK = "specbranch-", "maker"
_YOUNG_S = 60.0


def make_meeting_place() -> tuple[Path, IO[bytes]]:
    """An empty folder for what processes share, in shared memory where the system has it, and the lock that says that
    its maker lives. The maker removes the folder; one whose maker was killed goes when the next is made.
    """
    base = SHARED if os.access(SHARED, os.W_OK) else Path(tempfile.gettempdir())
    for folder in base.glob(f"{_PREFIX}*"):
        _remove_if_left(folder)
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    lock = (place / _LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()).encode())
    lock.flush()
    return place, lock


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a maker that is gone: nobody holds its lock. Others' folders cannot be opened, and stay."""
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime < _YOUNG_S:
            return  # perhaps it is just being made
        with (folder / _LOCK).open("a+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.seek(0)
            if (maker := lock.read().decode(errors="replace")).isdecimal():
                for semaphore in SHARED.glob(f"sem.loky-{maker}-*"):  # joblib's, whose names say who made them
                    semaphore.unlink(missing_ok=True)
            shutil.rmtree(folder)

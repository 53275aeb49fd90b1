"""Processes on this machine: how many cores they may use, and what stands on the path of those that we start."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]  # the folder that holds our packages, installed or not
_LOOK_S = 0.5  # between two looks whether the parent is there
_TO_CLEAR: list[Path] = []


def num_cores(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup"), *, allowed: int | None = None
) -> int:
    """Cores that this process may keep busy: those of its affinity now, at most its container's quota, at least 1.

    allowed: cores to count in place of the affinity, for a process that has bound itself to one of them.
    cgroups: where the system shows the limits of control groups. own: the file that names this process's groups.
    """
    if allowed is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _quota(cgroups, own)) + 1e-6))


def _quota(cgroups: Path, own: Path) -> float:
    """The smallest quota, in cores, of the control groups around this process; infinite where there is none."""
    try:
        groups = [line.split(":", 2)[2].strip("/") for line in own.read_text().splitlines()]
    except (OSError, IndexError):
        groups = []
    quotas = [math.inf]
    for base in (cgroups, cgroups / "cpu"):  # the second version of control groups, and the first
        for group in {"", *groups}:
            place = base / group
            for folder in (place, *[parent for parent in place.parents if parent.is_relative_to(base)]):
                quotas.append(_quota_of(folder))
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """The quota of one control group, in cores."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        else:
            return math.inf
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # not for us to read: no limit that we know of
        return math.inf


def import_path() -> list[str]:
    """sys.path for a process of ours: as here, without the user's working folder and the folder of the script, whose files
    may have our modules' names, or the standard library's. The folder of our packages stays, or comes first.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    users = {Path.cwd(), Path(script).resolve().parent if script else Path.cwd()} - {_ROOT}
    kept = [entry for entry in sys.path if entry and Path(entry).resolve() not in users]
    return kept if str(_ROOT) in kept else [str(_ROOT), *kept]


def end_with(parent: int) -> None:
    """End this process soon after the one that started it, whatever it is doing just then; before that, the places of
    `clear_after` are cleared. parent: its process id."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        for place in _TO_CLEAR:
            shutil.rmtree(place, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def clear_after(place: Path) -> None:
    """Remove a folder at the end of this process's parent, which `end_with` waits for: nobody else will."""
    _TO_CLEAR.append(place)


@contextmanager
def safe_children() -> Iterator[None]:
    """Python processes that start within leave the working folder out of their path (libraries start some with -c or -m,
    which would put it first)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before

"""Commands as processes of their own, in sessions of their own, so that whatever they leave behind is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SCRIPT = "from analysis.cli.main import run; run()"
LONGEST_S = 300.0


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
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


def wait_until(until: Callable[[], bool], process: subprocess.Popen[str], *, may_end: bool = False) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not until():
        assert may_end or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def of_session(leader: int) -> list[psutil.Process]:
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return members


def check_nothing_is_left(leader: int) -> None:
    deadline = time.monotonic() + 10
    while members := of_session(leader):
        if time.monotonic() > deadline:
            for member in members:
                member.kill()
            raise AssertionError(f"still there: {members}")
        time.sleep(0.1)

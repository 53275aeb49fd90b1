"""The target's process before it has a target: started ahead, it imports torch while its parent does. Nothing heavy here."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO

from traces.processes import import_path

# With our path, not Python's own, which would begin with the user's working folder and whatever modules lie there.
# Its parent is watched before anything heavy is imported.
_START = """
import json, sys
parent, sys.path[:] = json.loads(sys.argv.pop())
from traces.processes import end_with
end_with(parent)
from executor.remote.worker import main
main()
"""
_AHEAD: list[StartedWorker] = []


@dataclass(frozen=True)
class StartedWorker:
    """A process that waits for its settings (`executor.remote.messages.WorkerSettings`) on the pipe; it ends with the pipe.

    stderr: what it says there, a file without a name.
    """

    process: subprocess.Popen[bytes]
    pipe: Connection
    stderr: IO[bytes]


def start_worker() -> StartedWorker:
    """A plain subprocess, not multiprocessing's spawn: a user's five-line script needs no `if __name__` guard."""
    ours, theirs = Pipe()
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(theirs.fileno()), json.dumps((os.getpid(), import_path()))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # before numpy and torch are imported there
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # ours may be a pipe, whose reader waits for all who hold it
        stderr=stderr,
    )
    theirs.close()
    return StartedWorker(process, ours, stderr)


def start_ahead() -> None:
    """Start the process that the next `take_worker` gives. For commands that are sure to need one: imports take seconds, in
    parent and worker alike, and two cores can do both at once."""
    if not _AHEAD:
        _AHEAD.append(start_worker())
        atexit.register(_end_unused)


def take_worker() -> StartedWorker:
    """The process that was started ahead, or a new one."""
    return _AHEAD.pop() if _AHEAD else start_worker()


def _end_unused() -> None:
    """At our end: a process that nobody took goes at once, not only when its imports are done."""
    for started in _AHEAD:
        started.process.kill()
        started.process.wait()
    _AHEAD.clear()

"""Sessions that are cheap to open and good neighbours: what the tests of results use. Those of processes use the real ones.

A session's target lives in a process of its own, and most of what that process does in a test is to import torch. Here it is
forked from one that has imported everything and does nothing else. The processes are not bound to cores, and a waiter
naps instead of spinning, so that tests may run beside one another. Nothing else differs: settings, messages, answers, pipes,
signals and exit codes are those of `executor.remote`.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, cast

import pytest

from executor import pair
from executor.remote import mailbox, starting
from executor.remote.starting import StartedWorker
from traces.processes import end_with, import_path

ROOT = Path(__file__).parents[1]
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from tests.light_sessions import serve; serve()"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_REAL_START, _REAL_PINS, _REAL_INIT = starting.start_worker, pair._pinned_cores, mailbox.Mailbox.__init__


@contextmanager
def light_sessions() -> Iterator[None]:
    """Within, targets are forked, nothing is bound to a core, and nobody spins."""
    with Nursery() as nursery, pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(starting, "start_worker", nursery.start)
        _make_light(patch)
        yield


@contextmanager
def bound_sessions() -> Iterator[None]:
    """Within, sessions are bound to cores and wait as users' do, light ones around or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "_pinned_cores", _REAL_PINS)
        patch.setattr(mailbox.Mailbox, "__init__", _REAL_INIT)
        yield


@contextmanager
def real_sessions() -> Iterator[None]:
    """Within, sessions are what users get: bound, and with a target in a new Python."""
    with bound_sessions(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "start_worker", _REAL_START)
        yield


def _make_light(patch: pytest.MonkeyPatch) -> None:
    def init(self: mailbox.Mailbox, path: Path, may_spin: bool = True) -> None:
        _REAL_INIT(self, path, may_spin=False)

    patch.setattr(mailbox.Mailbox, "__init__", init)
    patch.setattr(pair, "_pinned_cores", lambda *_: [])


class Nursery:
    """The process that workers are forked from; it starts with the first of them, and ends with us."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        if self._orders is not None and self._process is not None:
            self._orders.close()
            self._process.wait()

    def start(self) -> StartedWorker:
        """In place of `executor.remote.starting.start_worker`: a child of this process, which it did not fork itself."""
        ours, theirs = Pipe()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        message = json.dumps({"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "folder": os.getcwd()}).encode()
        orders = self._start()
        _adopt_orphans(True)
        try:
            socket.send_fds(orders, [len(message).to_bytes(8, "little")], [theirs.fileno(), stderr.fileno()])
            orders.sendall(message)
            pid = int.from_bytes(_read(orders, 8), "little")
        finally:
            _adopt_orphans(False)
        theirs.close()
        return StartedWorker(cast("subprocess.Popen[bytes]", Worker(pid)), ours, stderr)

    def _start(self) -> socket.socket:
        if self._orders is None:
            self._orders, theirs = socket.socketpair()
            command = [
                sys.executable,
                "-P",
                "-c",
                _START,
                str(theirs.fileno()),
                json.dumps([str(ROOT), *import_path()]),
            ]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for pytest
            )
            theirs.close()
        return self._orders


class Worker:
    """What `executor.remote` asks of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        """At once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def serve() -> None:
    """The nursery: import what a worker needs, then fork one for each order, until the other side is gone."""
    from executor.remote import worker

    _make_light(pytest.MonkeyPatch())
    orders = socket.socket(fileno=int(sys.argv[1]))
    while True:
        head, files, _, _ = socket.recv_fds(orders, 8, 2)
        if not head:
            return
        order = json.loads(_read(orders, int.from_bytes(head, "little")))
        told, tell = os.pipe()
        if not (middle := os.fork()):  # it ends at once, so that the worker becomes a child of whoever asked
            middle = os.getpid()
            if pid := os.fork():
                os.write(tell, pid.to_bytes(8, "little"))
                os._exit(0)
            while os.getppid() == middle:
                time.sleep(0.0005)
            orders.close()
            _become(order, *files, worker.main)
        os.waitpid(middle, 0)
        pid_told = os.read(told, 8)
        for file in (told, tell, *files):
            os.close(file)
        orders.sendall(pid_told)


def _become(order: dict[str, Any], pipe: int, stderr: int, work: Callable[[], None]) -> None:
    """Do in this process what a new Python would, and end it."""
    code = 1
    try:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv[:] = ["-c", str(pipe)]
        end_with(os.getppid())
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _read(orders: socket.socket, num_bytes: int) -> bytes:
    text = b""
    while len(text) < num_bytes:
        part = orders.recv(num_bytes - len(text))
        if not part:
            raise ConnectionError("the nursery is gone")
        text += part
    return text


def _adopt_orphans(is_on: bool) -> None:
    """Whether a process below this one whose parent ends becomes a child of ours."""
    ctypes.CDLL(None).prctl(_SUBREAPER, int(is_on), 0, 0, 0)

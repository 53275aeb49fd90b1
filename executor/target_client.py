"""The decision maker's handle on the target's process: start it, submit, wait, and notice when it dies or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from typing import NamedTuple, Protocol

import numpy as np

from executor.errors import ExecutorError
from executor.mailbox import Mailbox, make_mailbox_file
from executor.requests import Request
from executor.scoring import Scores
from executor.target_worker import Opcode
from sim.machine import ClassProbs
from traces.schema import Sampling

LOAD_TIMEOUT_S = 600.0


class TargetVerdict(NamedTuple):
    """The outcome of a verification and when the target worked on it (seconds of time.perf_counter).

    predict_s: of these, what H-RAD's prediction took; class_probs: its result, None when it was not asked for.
    """

    num_accepted: int
    next_token: int
    start_s: float
    end_s: float
    predict_s: float
    class_probs: ClassProbs | None


class Prefill(NamedTuple):
    """A finished prefill: num_switches counts the target's involuntary context switches since the last request."""

    num_cached: int
    num_switches: int
    start_s: float
    end_s: float
    class_probs: ClassProbs | None


class Target(Protocol):
    """The decision maker's handle on a target, wherever it runs. Times are seconds of time.perf_counter."""

    is_alive: bool

    @property
    def pid(self) -> int:
        """Process that the target runs in."""
        ...

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Start a request and its prefill; predicts: whether H-RAD's classes are wanted."""
        ...

    def wait_prefill(self) -> Prefill:
        """The end of the prefill under way."""
        ...

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """Start to verify the pending tokens after num_cached committed ones and `last`, the newest."""
        ...

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way."""
        ...

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling, vocab_size: int) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks; at temperature 0 the laws at temperature 1."""
        ...

    def close(self) -> None:
        """Give back what the target holds."""
        ...


class TargetClient:
    """The target model in a process of its own, pinned to `core` if that is given. Close it, or use it with `with`.

    timeout_s: longest wait for one answer; a worker that takes longer is killed and reported.
    hrad: folder of an H-RAD predictor, which then runs in the target's process.
    """

    def __init__(
        self,
        model: str,
        *,
        engine: str = "static",
        device: str = "cpu",
        dtype: str = "float32",
        capacity: int = 1024,
        vocab_size: int | None = None,
        core: int | None = None,
        timeout_s: float = 60.0,
        hrad: str | None = None,
    ) -> None:
        self._model, self._timeout_s, self._has_predictor = model, timeout_s, bool(hrad)
        self._paths = [make_mailbox_file(), make_mailbox_file()]
        self._outbox, self._inbox = (Mailbox(path) for path in self._paths)
        self._pipe, theirs = Pipe()
        settings = {
            "model": model,
            "engine": engine,
            "device": device,
            "dtype": dtype,
            "capacity": capacity,
            "vocab_size": vocab_size,
            "core": core,
            "hrad": hrad,
            "inbox": str(self._paths[0]),
            "outbox": str(self._paths[1]),
            "pipe": theirs.fileno(),
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        # A plain subprocess, not multiprocessing's spawn: a user's five-line script needs no `if __name__` guard.
        # One thread: set before numpy and torch are imported there.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "executor.target_worker", json.dumps(settings)],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        theirs.close()
        self._deadline = 0.0
        self.is_alive = True
        try:
            self._wait(LOAD_TIMEOUT_S, f"loading {model}")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Start a request and its prefill; `wait_prefill` waits for it. predicts: whether classes are wanted."""
        sampling = request.sampling
        self._outbox.post(
            Opcode.BEGIN,
            (request.seed, request.noise_key, request.max_new_tokens, predicts, sampling.top_k, *request.tokens),
            (sampling.temperature, sampling.top_p),
        )

    def wait_prefill(self) -> Prefill:
        """The end of the prefill under way."""
        body, floats = self._wait(self._timeout_s, "prefill")
        return Prefill(body[0], body[1], floats[0], floats[1], _class_probs(floats[2:]))

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """Start to verify the pending tokens after the first num_cached committed ones and `last`, the newest.

        The caller says where the line ends, so that it alone decides what was committed.
        """
        self._outbox.post(Opcode.VERIFY, (num_cached, last, *pending))

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way."""
        body, floats = self._wait(self._timeout_s, "verification")
        return TargetVerdict(body[0], body[1], floats[0], floats[1], floats[2], _class_probs(floats[3:]))

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling, vocab_size: int) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks; at temperature 0 the laws at temperature 1."""
        self._outbox.post(Opcode.SCORE, (num_prompt, sampling.top_k, *tokens), (sampling.temperature, sampling.top_p))
        self._wait(self._timeout_s, "scoring")
        left = len(tokens) - num_prompt
        while left > 0:
            probs = np.frombuffer(self._receive(), np.float32).reshape(-1, vocab_size)
            stats = np.frombuffer(self._receive(), np.float32).reshape(-1, 2)
            classes = np.frombuffer(self._receive() if self._has_predictor else b"", np.float32).reshape(-1, 3)
            left -= len(probs)
            yield Scores(probs, stats, classes)

    def close(self) -> None:
        """Stop the worker, by force if it does not listen; release what was shared."""
        if not self.is_alive:
            return
        self.is_alive = False
        if self._process.poll() is None:
            self._outbox.post(Opcode.STOP)
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._pipe.close()
        self._stderr.close()
        for mailbox in (self._inbox, self._outbox):
            mailbox.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def __enter__(self) -> TargetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, timeout_s: float, what: str) -> tuple[list[int], list[float]]:
        if not self.is_alive:
            raise ExecutorError("the target process was closed; start a new session.")
        self._deadline, self._what = time.perf_counter() + timeout_s, what
        opcode, body, floats = self._inbox.wait(self._check)
        if opcode == Opcode.FAILED:
            self._fail(self._pipe.recv()["error"])
        return body, floats

    def _receive(self) -> bytes:
        deadline = time.perf_counter() + self._timeout_s
        while not self._pipe.poll(0.5):
            if self._process.poll() is not None or time.perf_counter() > deadline:
                self._fail("it stopped answering while scoring")
        return self._pipe.recv_bytes()

    def _check(self) -> None:
        code = self._process.poll()
        if code is not None:
            self._fail(self._last_words() or f"it ended with exit code {code}")
        if time.perf_counter() > self._deadline:
            self._process.kill()
            self._process.wait()
            self._fail("no answer in time; it was stopped (a larger timeout_s waits longer)")

    def _last_words(self) -> str:
        """What a dead worker said: its own report, or the last line on its standard error."""
        try:
            if self._pipe.poll():
                return str(self._pipe.recv()["error"])
        except EOFError:
            pass
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _fail(self, why: str) -> None:
        what = getattr(self, "_what", "work")
        self.close()
        raise ExecutorError(f"the target process failed during {what} of {self._model}: {why}")


def _class_probs(floats: Sequence[float]) -> ClassProbs | None:
    """Three probabilities as they came with a message, if they came."""
    return (floats[0], floats[1], floats[2]) if floats else None

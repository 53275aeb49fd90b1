"""The decision maker's handle on the target's process: start it, submit, wait, and notice when it dies or hangs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from executor.errors import ExecutorError
from executor.models.settings import PairSettings
from executor.models.sources.base import resolve_device
from executor.remote.channel import Channel, Message
from executor.remote.messages import (
    WORKER_SETTINGS,
    Opcode,
    WorkerSettings,
    begin_message,
    read_prefill,
    read_verdict,
    score_message,
    verify_message,
)
from executor.remote.starting import take_worker
from executor.remote.transport import open_channel
from executor.request import Request
from executor.roles.scoring import Scores
from executor.roles.target import Prefill, TargetVerdict
from traces.schema import Sampling
from traces.shared_memory import make_meeting_place

LOAD_TIMEOUT_S = 600.0
_STOP_S = 2.0  # for a worker to end by itself
_LAST_WORDS_S = 5.0  # for a worker whose connection broke to end and to be read
_LOOK_S = 0.05


class TargetClient:
    """The target model in a process of its own. Close it, or use it with `with`.

    pair: with every name resolved (`executor.pair.resolve_pair`). core: that the process is bound to, if it is given.
    Rows, which are many numbers and never timed, go through a pipe, as does the report of a worker that fails. A worker
    that does not answer within `pair.timeout_s` is killed and reported. Raises `ExecutorError`.
    """

    def __init__(self, pair: PairSettings, *, core: int | None = None) -> None:
        self._pair = pair
        self._what = "loading"
        self._num_captures = 0
        self._channel: Channel | None = None
        self._meeting_place, self._lock = make_meeting_place()
        started = take_worker()
        self._process, self._pipe, self._stderr = started.process, started.pipe, started.stderr
        settings = WorkerSettings(pair=pair, core=core, meeting_place=self._meeting_place)
        self.is_alive = True
        try:
            self._pipe.send_bytes(WORKER_SETTINGS.dump_json(settings))
            self._wait_for_pipe(LOAD_TIMEOUT_S)
            self.layouts: Mapping[str, str] = self._read_report()["layouts"]
            devices = (resolve_device(pair.engine.device), resolve_device(pair.target_engine.device))
            self._channel = open_channel(pair.transport, self._meeting_place, 0, devices, core=core)
        except ConnectionError as error:
            self._lose(error)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def num_captures(self) -> int:
        """Graphs that the worker had captured by its last answer."""
        return self._num_captures

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Start a request and its prefill; `wait_prefill` waits for it. predicts: whether classes are wanted."""
        self._post(begin_message(request, predicts=predicts), "prefill")

    def wait_prefill(self) -> Prefill:
        """The end of the prefill under way."""
        prefill, self._num_captures = read_prefill(self._wait())
        return prefill

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """Start to verify the pending tokens after the first num_cached committed ones and `last`, the newest."""
        self._post(verify_message(pending, last=last, num_cached=num_cached), "verification")

    def has_verdict(self) -> bool:
        """Whether the outcome is there already, without waiting."""
        return self._open_channel().has_message()

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the verification under way."""
        verdict, self._num_captures = read_verdict(self._wait())
        return verdict

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks; at temperature 0 the laws at temperature 1."""
        self._post(score_message(tokens, num_prompt, sampling), "scoring")
        self._wait()
        left = len(tokens) - num_prompt
        while left > 0:
            self._wait_for_pipe(self._pair.timeout_s)
            chunk: Scores = self._read_report()["scores"]
            left -= len(chunk.probs)
            yield chunk

    def close(self) -> None:
        """Stop the worker, by force if it does not listen; release what was shared."""
        if not self.is_alive:
            return
        self.is_alive = False
        if self._channel is not None and self._process.poll() is None:
            with suppress(ConnectionError, subprocess.TimeoutExpired):
                self._channel.post(Message(Opcode.STOP))
                self._process.wait(_STOP_S)
        self._kill()
        if self._channel is not None:
            self._channel.close()
        self._pipe.close()
        self._stderr.close()
        shutil.rmtree(self._meeting_place, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> TargetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, message: Message, what: str) -> None:
        self._what = what
        try:
            self._open_channel().post(message)
        except ConnectionError as error:
            self._lose(error)

    def _wait(self) -> Message:
        try:
            message = self._open_channel().wait(self._check, self._pair.timeout_s)
        except TimeoutError:
            self._give_up()
        except ConnectionError as error:
            self._lose(error)
        if message.opcode == Opcode.FAILED:
            self._read_report()
        return message

    def _open_channel(self) -> Channel:
        if self._channel is None or not self.is_alive:
            raise ExecutorError("the target process was closed; start a new session.")
        return self._channel

    def _wait_for_pipe(self, timeout_s: float) -> None:
        """Wait until something can be read from the pipe, be it the worker's end."""
        deadline = time.perf_counter() + timeout_s
        while not self._pipe.poll(_LOOK_S):
            self._check()
            if time.perf_counter() > deadline:
                self._give_up()

    def _read_report(self) -> dict[str, Any]:
        """What the worker sends through the pipe: that it has loaded, scores, or the error that it failed with."""
        try:
            report: dict[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._lose(error)
        if "error" in report:
            self._fail(report["error"])
        return report

    def _check(self) -> None:
        code = self._process.poll()
        if code is not None:
            self._fail(self._last_words() or f"it ended with exit code {code}")

    def _give_up(self) -> NoReturn:
        self._kill()
        self._fail(f"no answer in time: it was stopped after {self._pair.timeout_s:g} s")

    def _lose(self, error: Exception) -> NoReturn:
        """The connection broke: most likely the worker died, and its end says more."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        self._check()
        self._fail(f"the connection to it was lost ({error})")

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        """What a dead worker said: its own report, or the last line on its standard error."""
        try:
            while self._pipe.poll():
                report = self._pipe.recv()
                if "error" in report:
                    return str(report["error"])
        except (EOFError, ConnectionError):
            pass
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _fail(self, why: str) -> NoReturn:
        self.close()
        raise ExecutorError(f"the target process failed during {self._what} of {self._pair.target}: {why}")

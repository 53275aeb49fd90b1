"""Devices in simulated time: work is submitted, and a SimPy event says when it is done.

A `Fifo` serves one job after another, so that a job's end is known when it is submitted. The two lanes of `SharedDevices`
slow each other down while both work: their jobs are timed anew at each change, and an end is known when it has come.
Whoever needs a result waits for `Job.done`, whatever the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, TypeAlias

import simpy

from traces.fits.interference import Interference

Event: TypeAlias = Any  # simpy ships without types for its events' values


class Job:
    """Work on a device. start_s: when it began. end_s: when it is done, None as long as that is not known."""

    __slots__ = ("_done", "_env", "end_s", "start_s")

    def __init__(self, env: simpy.Environment, start_s: float, end_s: float | None, done: Event = None) -> None:
        self._env, self.start_s, self.end_s, self._done = env, start_s, end_s, done

    @property
    def done(self) -> Event:
        """The event of its end; made when somebody asks, for most jobs are waited for together with others."""
        if self._done is None:
            env, end_s = self._env, self.end_s
            assert end_s is not None, "a job without an event has a known end"
            wait_s = end_s - env.now
            self._done = simpy.Timeout(env, wait_s if wait_s > 0 else 0.0)
        return self._done


class Device(Protocol):
    """What runs operations."""

    name: str

    def submit(self, seconds: float, size: int = 1) -> Job:
        """Queue work of this length, were it alone; jobs of one instant run in the order of the calls. size: tokens of the
        target's verification, rows of the draft's forwards, 0 of a prompt: what their interference depends on."""
        ...


class Fifo:
    """One job after another, first come, first served. (A test holds this equal to `simpy.Resource`.)"""

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name = name
        self._env = env
        self._free_at_s = 0.0

    def submit(self, seconds: float, size: int = 1) -> Job:
        """See `Device.submit`."""
        now = self._env.now
        start_s = self._free_at_s if self._free_at_s > now else now
        self._free_at_s = end_s = start_s + seconds
        return Job(self._env, start_s, end_s)

    def finish_s(self, seconds: float) -> float:
        """Queue work and say when it will be done, for those who need no more of it than that."""
        now = self._env.now
        self._free_at_s = end_s = (self._free_at_s if self._free_at_s > now else now) + seconds
        return end_s


class SharedDevices:
    """A lane for the draft and one for the target, each first come, first served; while both work, each goes at its pace."""

    def __init__(self, env: simpy.Environment, interference: Interference, names: tuple[str, str]) -> None:
        """names: of the draft's device and of the target's."""
        self._env, self._interference = env, interference
        self.draft, self.target = (Lane(env, name, self) for name in names)
        self._lanes = (self.target, self.draft)
        self._timed_at_s = 0.0
        self._version = 0
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def retime(self) -> None:
        """Work off what has passed, end what is done, and ask to be called when the next job will be."""
        now = self._env.now
        passed_s = now - self._timed_at_s
        self._timed_at_s = now
        for lane, pace in self._running():
            lane.work_off(passed_s * pace)
        self._version += 1
        if running := self._running():
            left_s = min(lane.waiting[0].left_s / pace for lane, pace in running)
            self._env.timeout(left_s, self._version).callbacks.append(self._on_time)

    def _on_time(self, event: Event) -> None:
        if event.value == self._version:  # otherwise something changed meanwhile
            running = self._running()
            shortest_s = min(lane.waiting[0].left_s / pace for lane, pace in running)
            for lane, pace in running:  # rounding must not leave a job unfinished at its very end
                lane.waiting[0].is_due = lane.waiting[0].left_s / pace <= shortest_s
            self.retime()

    def _running(self) -> list[tuple[Lane, float]]:
        """The lanes that work, each with its pace."""
        if not (self.target.waiting and self.draft.waiting):
            return [(lane, 1.0) for lane in self._lanes if lane.waiting]
        sizes = self.target.waiting[0].size, self.draft.waiting[0].size
        paces = self._known.get(sizes)
        if paces is None:
            found = self._interference.paces(*sizes) if min(sizes) else [self._interference.prefill] * 2
            paces = self._known[sizes] = (float(found[0]), float(found[1]))
        return list(zip(self._lanes, paces, strict=True))


class _Waiting:
    """A job of a lane with the work that is left of it."""

    __slots__ = ("is_due", "job", "left_s", "size")

    def __init__(self, job: Job, left_s: float, size: int) -> None:
        self.job, self.left_s, self.size, self.is_due = job, left_s, size, False


class Lane:
    """One queue of `SharedDevices`; a `Device` of its own to whoever submits."""

    def __init__(self, env: simpy.Environment, name: str, shared: SharedDevices) -> None:
        self.name = name
        self.waiting: deque[_Waiting] = deque()
        self._env, self._shared = env, shared

    def submit(self, seconds: float, size: int = 1) -> Job:
        """See `Device.submit`."""
        job = Job(self._env, self._env.now, None, self._env.event())
        self._shared.retime()  # what has run so far did so without this job
        self.waiting.append(_Waiting(job, seconds, size))
        self._shared.retime()
        return job

    def work_off(self, seconds: float) -> None:
        """The first job has got on by so many of its seconds."""
        first = self.waiting[0]
        first.left_s -= seconds
        if first.is_due or first.left_s <= 0:
            self.waiting.popleft()
            first.job.end_s = self._env.now
            first.job.done.succeed()
            if self.waiting:
                self.waiting[0].job.start_s = self._env.now

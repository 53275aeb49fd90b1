"""Devices in simulated time: work is submitted, and a SimPy event says when it is done.

A `Fifo` serves one job after another, so that a job's end is known when it is submitted. A `Lane` of a `SharedDevice`
runs beside the other lane, and both slow down while both work: their jobs are timed anew at each change, and an end is
known when it has come. Whoever needs a result waits for `Job.done`, whatever the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, TypeAlias

import simpy

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
            assert self.end_s is not None, "a job without an event has a known end"
            wait_s = self.end_s - self._env.now
            self._done = self._env.timeout(wait_s if wait_s > 0 else 0.0)
        return self._done


class Device(Protocol):
    """What runs operations."""

    name: str

    def submit(self, seconds: float) -> Job:
        """Queue work of this length, were it alone; jobs of one instant run in the order of the calls."""
        ...


class Fifo:
    """One job after another, first come, first served. (A test holds this equal to `simpy.Resource`.)"""

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name = name
        self._env = env
        self._free_at_s = 0.0

    def submit(self, seconds: float) -> Job:
        """See `Device.submit`."""
        start_s = max(self._free_at_s, self._env.now)
        return Job(self._env, start_s, self.finish_s(seconds))

    def finish_s(self, seconds: float) -> float:
        """Queue work and say when it will be done, for those who need no more of it than that."""
        now = self._env.now
        self._free_at_s = end_s = (self._free_at_s if self._free_at_s > now else now) + seconds
        return end_s


class SharedDevice:
    """Lanes that work at once, each first come, first served; while n of them work, each is slowed by 1 + (n - 1) (f - 1).

    interference: f, at least 1; 1 is as good as a device for each lane, and with two lanes 2 as bad as taking turns.
    """

    def __init__(self, env: simpy.Environment, name: str, interference: float) -> None:
        if not 1 <= interference < float("inf"):
            raise ValueError(f"interference must be at least 1, but got {interference}; 1 is none, 2 is taking turns.")
        self._env, self._name, self._interference = env, name, interference
        self._lanes: list[Lane] = []
        self._timed_at_s = 0.0
        self._version = 0

    def lane(self) -> Lane:
        """A further lane."""
        self._lanes.append(Lane(self._env, self._name, self))
        return self._lanes[-1]

    def retime(self) -> None:
        """Work off what has passed, end what is done, and ask to be called when the next job will be."""
        now = self._env.now
        running = [lane for lane in self._lanes if lane.waiting]
        passed_s = (now - self._timed_at_s) / self._slowdown(running)
        self._timed_at_s = now
        for lane in running:
            lane.work_off(passed_s)
        running = [lane for lane in self._lanes if lane.waiting]
        self._version += 1
        if running:
            left_s = min(lane.waiting[0].left_s for lane in running) * self._slowdown(running)
            self._env.timeout(left_s, self._version).callbacks.append(self._on_time)

    def _on_time(self, event: Event) -> None:
        if event.value == self._version:  # otherwise something changed meanwhile
            firsts = [lane.waiting[0] for lane in self._lanes if lane.waiting]
            shortest_s = min(first.left_s for first in firsts)
            for first in firsts:  # rounding must not leave a job unfinished at its very end
                first.is_due = first.left_s <= shortest_s
            self.retime()

    def _slowdown(self, running: list[Lane]) -> float:
        return 1.0 + max(0, len(running) - 1) * (self._interference - 1.0)


class _Waiting:
    """A job of a lane with the work that is left of it."""

    __slots__ = ("is_due", "job", "left_s")

    def __init__(self, job: Job, left_s: float) -> None:
        self.job, self.left_s, self.is_due = job, left_s, False


class Lane:
    """One queue of a `SharedDevice`; a `Device` of its own to whoever submits."""

    def __init__(self, env: simpy.Environment, name: str, shared: SharedDevice) -> None:
        self.name = name
        self.waiting: deque[_Waiting] = deque()
        self._env, self._shared = env, shared

    def submit(self, seconds: float) -> Job:
        """See `Device.submit`."""
        job = Job(self._env, self._env.now, None, self._env.event())
        self._shared.retime()  # what has run so far did so without this job
        self.waiting.append(_Waiting(job, seconds))
        self._shared.retime()
        return job

    def work_off(self, seconds: float) -> None:
        """The first job has run so long, alone."""
        first = self.waiting[0]
        first.left_s -= seconds
        if first.is_due or first.left_s <= 0:
            self.waiting.popleft()
            first.job.end_s = self._env.now
            first.job.done.succeed()
            if self.waiting:
                self.waiting[0].job.start_s = self._env.now

"""Scale out: the same tasks in this process, in processes of this machine, or on a Dask cluster, through joblib.

What a task computes depends on its arguments alone, so that every backend gives the same numbers bit for bit. Results
come as they are ready. On Dask a task whose worker dies runs again on another one: arguments travel within the task,
so that nothing is lost with a worker.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from sim.decoding.policies.own import own_modules
from traces.processes import clear_after, end_with, safe_children

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where tasks run. count: processes, for the processes backend; 1 stays in this one. scheduler: Dask's address,
    such as tcp://127.0.0.1:8786. timeout_s: to reach it."""

    count: int = 1
    backend: Literal["processes", "dask"] = "processes"
    scheduler: str | None = None
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"workers must be at least 1, but got {self.count}.")
        if self.backend not in ("processes", "dask"):
            raise ValueError(f"unknown backend {self.backend!r}; known are processes and dask.")
        if self.backend == "dask" and not self.scheduler:
            raise ValueError("the dask backend needs --scheduler, such as --scheduler tcp://127.0.0.1:8786.")
        if self.backend != "dask" and self.scheduler:
            raise ValueError("a scheduler is for the dask backend; give --backend dask as well.")


def run_tasks(
    function: Callable[..., ResultT], tasks: Sequence[tuple[Any, ...]], workers: Workers
) -> Iterator[tuple[int, ResultT]]:
    """Index and result of function(*task) for each task, in the order in which they end. The function must be
    importable.
    """
    if workers.backend == "processes" and (workers.count == 1 or len(tasks) < 2):
        for index, task in enumerate(tasks):
            yield index, function(*task)
        return
    from joblib import Parallel, delayed

    sent = map(_ByValue.of, tasks) if own_modules() else tasks
    calls = (delayed(_numbered)(function, index, task) for index, task in enumerate(sent))
    with _backend(workers) as settings:
        # One task a batch and all of them handed over at once: tasks are long, and a cluster may grow meanwhile.
        parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all", **settings)
        for index, result in parallel(calls):
            yield index, result.value() if isinstance(result, _ByValue) else result


@contextmanager
def starting(function: Callable[..., object], workers: Workers) -> Iterator[Callable[[], None]]:
    """Processes start, and import what the function needs, while this one prepares its tasks; call what this gives before
    the first `run_tasks`. Nothing happens for one process or on a cluster."""
    if workers.backend != "processes" or workers.count == 1:
        yield lambda: None
        return
    from joblib import Parallel, delayed

    parallel = Parallel(batch_size=1, return_as="generator_unordered", **_processes(workers.count))
    with safe_children():
        ready = parallel(delayed(_name_of)(function) for _ in range(workers.count))
    try:
        yield lambda: deque(ready, maxlen=0).clear()
    finally:
        ready.close()


@dataclass(frozen=True)
class _ByValue:
    """What a user's policies are part of, on its way: classes travel whole, for no worker looks into the user's folder."""

    data: bytes

    @classmethod
    def of(cls, value: object) -> _ByValue:
        try:
            import cloudpickle
        except ImportError:  # joblib's own, in versions that bring one
            from joblib.externals import cloudpickle
        for module in own_modules():
            cloudpickle.register_pickle_by_value(module)
        return cls(cloudpickle.dumps(value))

    def value(self) -> Any:
        return pickle.loads(self.data)  # from this program's own processes


def _name_of(function: Callable[..., object]) -> str:
    return function.__name__  # to receive a function is to import its module


def _numbered(
    function: Callable[..., ResultT], index: int, task: tuple[Any, ...] | _ByValue
) -> tuple[int, ResultT | _ByValue]:
    if isinstance(task, _ByValue):
        return index, _ByValue.of(function(*task.value()))
    return index, function(*task)


@cache
def _meeting_place() -> str | None:
    """Where joblib puts what the processes share, for as long as this one lives; None leaves it to joblib. When all of them
    are killed at once, the next command clears what they leave."""
    if os.name != "posix":
        return None
    from traces.shared_memory import make_meeting_place

    place, lock = make_meeting_place()

    def clear() -> None:
        shutil.rmtree(place, ignore_errors=True)
        lock.close()

    atexit.register(clear)
    return str(place)


@cache
def _hush_manager() -> None:
    """The thread in which joblib (1.6) manages its processes stumbles over tasks that it has just dropped itself when a study
    is broken off, with a KeyError: that is nothing for the user, who has ended it."""
    others = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (type(failed.thread).__name__ == "_ExecutorManagerThread" and failed.exc_type is KeyError):
            others(failed)

    threading.excepthook = hook


def _processes(count: int) -> dict[str, Any]:
    """Settings of `joblib.Parallel` for processes of this machine, which follow this one from their start on."""
    _hush_manager()
    place = _meeting_place()
    follow = {"initializer": _follow, "initargs": (os.getpid(), place)}
    return {"n_jobs": count, "backend": "loky", "temp_folder": place, **follow}


def _follow(parent: int, place: str | None) -> None:
    """A parent that was killed stops no worker itself, also not one that has no task yet, and clears no place."""
    if place is not None:
        clear_after(Path(place))
    end_with(parent)


@contextmanager
def _backend(workers: Workers) -> Iterator[dict[str, Any]]:
    """Settings of `joblib.Parallel`, while the connection behind them is open."""
    if workers.backend == "processes":
        with safe_children():  # to the end: one that was lost is started anew
            yield _processes(workers.count)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("the dask backend needs dask; pip install 'specbranch[dask]'.") from error
    from joblib import parallel_config

    try:
        client = Client(workers.scheduler, timeout=workers.timeout_s, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {workers.scheduler} ({error}): check --scheduler, and that one runs there."
        ) from error
    with client, parallel_config(backend="dask", client=client, wait_for_workers_timeout=60):
        yield {"n_jobs": -1}

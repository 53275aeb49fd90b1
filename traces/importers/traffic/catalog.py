"""The formats of traffic that can be read, and which of them a file is."""

from __future__ import annotations

from pathlib import Path

from traces.importers.base import ForeignTraceError, numbered_lines
from traces.importers.traffic.aiperf import AiPerf
from traces.importers.traffic.azure import AZURE
from traces.importers.traffic.base import ReadOptions, TrafficReader
from traces.importers.traffic.burstgpt import BURSTGPT
from traces.importers.traffic.dsdsim import DsdSim
from traces.importers.traffic.measured import MeasuredRequests, MeasuredVllm
from traces.importers.traffic.servegen import ArrivalWindows, ServeGen
from traces.importers.traffic.splitwise import SPLITWISE
from traces.importers.traffic.timed_trace import TimedTrace
from traces.importers.traffic.vidur import VIDUR, VidurLengths
from traces.workload import Lengths, Workload

TIMED_TRACE, MEASURED_VLLM = TimedTrace(), MeasuredVllm()
READERS: tuple[TrafficReader, ...] = (AZURE, BURSTGPT, VIDUR, SPLITWISE, TIMED_TRACE, DsdSim(), AiPerf(), MEASURED_VLLM)
LENGTHS, WINDOWS = VidurLengths(), ServeGen()


def read_traffic(
    path: str | Path,
    *,
    sort: bool = False,
    timestamp_unit_s: float | None = None,
    prefix_block_tokens: int | None = None,
) -> Workload:
    """The requests of a traffic file in any known format, recognised by its first line; .gz files are unpacked.

    Arrivals count from the first request. sort: put requests that are out of order in order; they are an error otherwise.
    timestamp_unit_s, prefix_block_tokens: what a timestamp counts, and how many tokens a hash id stands for, in a timed trace
    (`traces.importers.traffic.timed_trace`), which does not say it.

    Raises ForeignTraceError, with file, line and what to do, where the file cannot be read, is empty, is of no known format,
    holds a row that is not a request, or says no arrivals; ValueError where an option does not suit.
    """
    path = Path(path)
    first_line = _first_line(path)
    for reader in READERS:
        if reader.recognises(first_line):
            options = ReadOptions(sort=sort, timestamp_unit_s=timestamp_unit_s, prefix_block_tokens=prefix_block_tokens)
            _check(options, reader)
            return reader.read(path, options)
    if LENGTHS.recognises(first_line):
        raise ForeignTraceError(
            f"{path} says how long requests are, but not when they arrive; read it with read_lengths, and draw arrivals "
            "(sim.serving.workload.draw.draw_workload)."
        )
    if WINDOWS.recognises(first_line):
        raise ForeignTraceError(
            f"{path} describes arrivals by window, and no requests; read it with read_windows, and draw requests "
            "(sim.serving.workload.draw.draw_windows)."
        )
    raise _unknown(path)


def read_lengths(path: str | Path, *, sort: bool = False) -> Lengths:
    """The lengths of the requests in a traffic file, also of one that says nothing else. Raises as `read_traffic`."""
    path = Path(path)
    if LENGTHS.recognises(_first_line(path)):
        return LENGTHS.read(path)
    return read_traffic(path, sort=sort).lengths


def read_windows(path: str | Path) -> ArrivalWindows:
    """A client of ServeGen. Raises ForeignTraceError, with file and line, where the file is none."""
    path = Path(path)
    if not WINDOWS.recognises(_first_line(path)):
        raise ForeignTraceError(f"{path} is not a {WINDOWS.format}.")
    return WINDOWS.read(path)


def holds_measured(path: str | Path) -> bool:
    """Whether `read_measured` reads this file. Raises ForeignTraceError where it cannot be opened, or is empty."""
    return MEASURED_VLLM.recognises(_first_line(Path(path)))


def read_measured(path: str | Path, *, sort: bool = False) -> MeasuredRequests:
    """Requests with the times that the server wrote down. Raises ForeignTraceError as `read_traffic`."""
    path = Path(path)
    if not MEASURED_VLLM.recognises(_first_line(path)):
        raise ForeignTraceError(f"{path} does not hold {MEASURED_VLLM.format}.")
    return MEASURED_VLLM.read_measured(path, ReadOptions(sort=sort))


def _first_line(path: Path) -> bytes:
    """Raises ForeignTraceError where the file cannot be read, or is empty."""
    _, first_line = next(numbered_lines(path), ("", b""))
    if not first_line:
        raise ForeignTraceError(f"{path} is empty; give a file with one request a line.")
    return first_line


def _check(options: ReadOptions, reader: TrafficReader) -> None:
    for name, value in (
        ("timestamp_unit_s", options.timestamp_unit_s),
        ("prefix_block_tokens", options.prefix_block_tokens),
    ):
        if value is None:
            continue
        if reader is not TIMED_TRACE:
            raise ValueError(f"{name} is for timed traces only, but the file is a {reader.format}.")
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0, but got {value}.")


def _unknown(path: Path) -> ForeignTraceError:
    known = "; ".join([*(reader.format for reader in READERS), LENGTHS.format, WINDOWS.format])
    return ForeignTraceError(f"{path} is not traffic in a known format; these are: {known}.")

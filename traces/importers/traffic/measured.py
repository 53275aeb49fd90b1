"""Requests of a vLLM server with the times that the server itself wrote down: JSON lines, seconds.

    {"request_id": "bench-0", "input_toks": 2358, "output_toks": 531, "arrival_time": 1787267980.08, "queued_ts": 27536.66,
     "scheduled_ts": 27536.66, "first_token_ts": 27537.35, "last_token_ts": 27554.23}

(github.com/casys-kaist/LLMServingSim, bench/examples.) arrival_time is the wall clock, the others a monotonic clock. Nobody
wrote down how far the two are apart: they are laid so that the least time from a request's arrival to its being queued is 0.
Times from arrival are therefore too short by that least time, some milliseconds; times from queued_ts on are exact.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from traces.importers.base import parsed_line
from traces.importers.traffic.base import ReadOptions, TrafficRows, row_error, rows_of
from traces.workload import Floats, Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRequests:
    """A workload, and what a server made of it: (n,) seconds from the first arrival, in order of arrival.

    queued_s, scheduled_s: the engine put the request in its waiting queue, and first took it out. first_token_s, last_token_s:
    its first and its last output token were there.
    """

    workload: Workload
    queued_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    last_token_s: Floats

    @property
    def arrival_s(self) -> Floats:
        return self.workload.arrival_s

    @property
    def ttft_s(self) -> Floats:
        """(n,) arrival to first token, queueing included; too short by the least time from arrival to queue, see above."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """(n,) (last token - first token) / (output tokens - 1); NaN for requests of one token."""
        gaps = self.workload.output_tokens - 1
        tpot_s = np.full(len(gaps), np.nan)
        np.divide(self.last_token_s - self.first_token_s, gaps, out=tpot_s, where=gaps > 0)
        return tpot_s


@dataclass(frozen=True)
class _Request:
    input_toks: int
    output_toks: int
    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


_REQUEST = TypeAdapter(_Request)


class MeasuredVllm:
    """The reader of this format."""

    format = "measured vLLM requests: JSON lines with input_toks, output_toks, arrival_time, scheduled_ts"

    def recognises(self, first_line: bytes) -> bool:
        return b'"scheduled_ts"' in first_line and b'"input_toks"' in first_line

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """Raises ForeignTraceError with file and line where a line is not such a request."""
        return self.read_measured(path, options).workload

    def read_measured(self, path: Path, options: ReadOptions) -> MeasuredRequests:
        """With the server's times. Raises ForeignTraceError as `read`."""
        rows = TrafficRows(path, ticks_per_s=1, sort=options.sort)
        stamps = array("d")
        for number, line in rows_of(path):
            request = parsed_line(_REQUEST, f"{path}, line {number}", line, expected="a measured vLLM request")
            rows.add(number, request.arrival_time, request.input_toks, request.output_toks)
            times = (request.queued_ts, request.scheduled_ts, request.first_token_ts, request.last_token_ts)
            if not 0 <= times[0] <= times[1] <= times[2] <= times[3] < np.inf:
                raise row_error(
                    path,
                    number,
                    f"queued_ts, scheduled_ts, first_token_ts and last_token_ts are {', '.join(map(str, times))}, but these "
                    "times must be numbers and must not fall; correct or remove the line.",
                )
            stamps.extend(times)
        workload = rows.workload(format=self.format)
        by_request = np.array(stamps).reshape(-1, 4)[rows.order()]
        by_request -= (by_request[:, 0] - workload.arrival_s).min()
        return MeasuredRequests(
            workload=workload,
            queued_s=by_request[:, 0],
            scheduled_s=by_request[:, 1],
            first_token_s=by_request[:, 2],
            last_token_s=by_request[:, 3],
        )

"""Requests of dsdSim (github.com/yfzzzyyls/dsdSim): JSON lines, milliseconds.

{"request_id": "gsm8k_00001", "arrival_ms": 25.0, "prompt_tokens": 41, "target_tokens": 178, "device_tier": "default"}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from traces.importers.base import parsed_line
from traces.importers.traffic.base import ReadOptions, TrafficRows, rows_of
from traces.workload import Workload


@dataclass(frozen=True)
class _Request:
    arrival_ms: int | float
    prompt_tokens: int
    target_tokens: int


_REQUEST = TypeAdapter(_Request)


class DsdSim:
    """The reader of this format."""

    format = "dsdSim trace: JSON lines with arrival_ms, prompt_tokens, target_tokens"

    def recognises(self, first_line: bytes) -> bool:
        return b'"arrival_ms"' in first_line

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """Raises ForeignTraceError with file and line where a line is not a request."""
        rows = TrafficRows(path, ticks_per_s=1000, sort=options.sort)
        for number, line in rows_of(path):
            request = parsed_line(_REQUEST, f"{path}, line {number}", line, expected="a request of dsdSim")
            rows.add(number, request.arrival_ms, request.prompt_tokens, request.target_tokens)
        return rows.workload(format=self.format)

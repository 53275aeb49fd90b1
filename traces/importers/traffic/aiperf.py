"""Requests that AIPerf sent: its profile_export.jsonl, one record a request (AIPerf 0.14; times in nanoseconds).

    {"metadata": {"request_start_ns": 1759813207532900363, "benchmark_phase": "profiling", "was_cancelled": false},
     "metrics": {"input_sequence_length": {"value": 550, "unit": "tokens"},
                 "output_sequence_length": {"value": 9, "unit": "tokens"}}, "error": null}

Records are written as requests end, so they are always put in order of their start. Warm-up requests, cancelled ones and those
with an error are left out, and the source line says how many were. The turns of a conversation become requests that arrive
when they did, whatever the server does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from traces.importers.base import parsed_line
from traces.importers.traffic.base import ReadOptions, TrafficRows, row_error, rows_of
from traces.workload import Workload


@dataclass(frozen=True)
class _Metadata:
    request_start_ns: int
    benchmark_phase: str | None = None
    was_cancelled: bool | None = None


@dataclass(frozen=True)
class _Tokens:
    value: int


@dataclass(frozen=True)
class _Metrics:
    input_sequence_length: _Tokens | None = None
    output_sequence_length: _Tokens | None = None


@dataclass(frozen=True)
class _Record:
    metadata: _Metadata
    metrics: _Metrics
    error: Any = None  # whatever the server or the client said


_RECORD = TypeAdapter(_Record)


class AiPerf:
    """The reader of this format."""

    format = "AIPerf profile_export.jsonl: JSON lines with metadata.request_start_ns"

    def recognises(self, first_line: bytes) -> bool:
        return b'"request_start_ns"' in first_line

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """Raises ForeignTraceError with its line where one is not such a record, or lacks a length without an error."""
        rows = TrafficRows(path, ticks_per_s=1_000_000_000, sort=True)
        num_left_out = 0
        for number, line in rows_of(path):
            record = parsed_line(
                _RECORD, f"{path}, line {number}", line, expected="a record of AIPerf's profile_export.jsonl"
            )
            metadata, metrics = record.metadata, record.metrics
            if record.error or metadata.was_cancelled or metadata.benchmark_phase == "warmup":
                num_left_out += 1
                continue
            if metrics.input_sequence_length is None or metrics.output_sequence_length is None:
                raise row_error(
                    path,
                    number,
                    "metrics lacks input_sequence_length or output_sequence_length, though the record has no error; "
                    "profile an endpoint whose tokens AIPerf counts.",
                )
            rows.add(
                number,
                metadata.request_start_ns,
                metrics.input_sequence_length.value,
                metrics.output_sequence_length.value,
            )
        remark = f"{num_left_out} warm-up, cancelled or failed requests are left out"
        return rows.workload(format=self.format, remarks=(remark,) if num_left_out else ())

"""Traces of timestamps and lengths: JSON lines as Mooncake, Bailian, `vllm bench serve --dataset-name timed_trace` and
GuideLLM's trace_minimal and mooncake have them.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}

hash_ids stand for blocks of the prompt, from its first token on: one id is one block *and all before it*, so that two requests
share as long a beginning as their ids agree. The file says neither how many tokens a block has nor what a timestamp counts:

- a block has 512 tokens where that fits every row (Mooncake, arXiv:2407.00079), otherwise 16 (Bailian, and the default of
  vLLM), otherwise nobody knows and it must be given. A size fits a row that has an id for every block, or for every full one;
- timestamps are milliseconds in blocks of 512, as in Mooncake, and seconds otherwise, as vLLM and GuideLLM take them. Whoever
  knows better says so (`timestamp_unit_s`; the multiplier that vLLM calls --timed-trace-sec-multiplier).

The source line tells what was taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from traces.importers.base import parsed_line
from traces.importers.traffic.base import ReadOptions, TrafficRows, row_error, rows_of
from traces.workload import Workload

MOONCAKE_BLOCK_TOKENS = 512
KNOWN_BLOCK_TOKENS = (MOONCAKE_BLOCK_TOKENS, 16)


@dataclass(frozen=True)
class _Request:
    timestamp: int | float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] | None = None


_REQUEST = TypeAdapter(_Request)
_EXPECTED = "a request with timestamp, input_length, output_length and perhaps hash_ids"


class TimedTrace:
    """The reader of this format."""

    format = "timed trace (Mooncake, Bailian, vLLM, GuideLLM): JSON lines with timestamp, input_length, output_length"

    def recognises(self, first_line: bytes) -> bool:
        return b'"timestamp"' in first_line and b'"input_length"' in first_line

    def read(self, path: Path, options: ReadOptions) -> Workload:
        """Raises ForeignTraceError with file and line where a line is not a request, or blocks do not fit its prompt."""
        blocks: list[tuple[int, ...]] = []
        rows = TrafficRows(path, ticks_per_s=1, sort=options.sort)
        sizes: tuple[int, ...] = (options.prefix_block_tokens,) if options.prefix_block_tokens else KNOWN_BLOCK_TOKENS
        has_blocks = False
        for number, line in rows_of(path):
            request = parsed_line(_REQUEST, f"{path}, line {number}", line, expected=_EXPECTED)
            rows.add(number, request.timestamp, request.input_length, request.output_length)
            blocks.append(request.hash_ids or ())
            if request.hash_ids is None:
                continue
            has_blocks = True
            fitting = tuple(size for size in sizes if _fits(request, size))
            if not fitting:
                raise row_error(
                    path,
                    number,
                    f"{len(request.hash_ids)} hash_ids cannot cover {request.input_length} tokens in blocks of "
                    f"{' or '.join(map(str, sizes))}, which the lines above allow; give the right prefix_block_tokens.",
                )
            sizes = fitting
        unit_s = options.timestamp_unit_s
        if unit_s is None:
            unit_s = 0.001 if has_blocks and sizes[0] == MOONCAKE_BLOCK_TOKENS else 1.0
        whole = rows.workload(
            format=self.format,
            prefix_blocks=blocks if has_blocks else None,
            prefix_block_tokens=sizes[0],
            remarks=(f"a timestamp counts {unit_s:g} s", *((f"blocks of {sizes[0]} tokens",) if has_blocks else ())),
        )
        return whole.scaled(1 / unit_s)


def _fits(request: _Request, block_tokens: int) -> bool:
    """Whether the ids are one for every block of the prompt, or one for every full block."""
    num_ids = len(request.hash_ids or ())
    return num_ids in (-(-request.input_length // block_tokens), request.input_length // block_tokens)

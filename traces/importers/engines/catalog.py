"""Which format a file of an engine is, and what several of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from traces.importers.base import ForeignTraceError, raw_lines
from traces.importers.engines.bench_json import kind_of, read_bench_json
from traces.importers.engines.bench_text import is_bench_text, read_bench_text
from traces.importers.engines.guidellm import read_guidellm
from traces.importers.engines.json_runs import read_objects
from traces.importers.engines.metrics_page import read_metrics
from traces.importers.engines.prometheus import Scrape, is_prometheus, read_scrape
from traces.importers.engines.records import THE_MEMORY, EngineFile, Served
from traces.importers.engines.request_lines import is_request_line, read_request_lines
from traces.mistakes import parse_json

KNOWN = (
    "results of vllm bench serve or SGLang's bench_serving (JSON, JSON lines, or their console in a log), GuideLLM's "
    "benchmarks.json, a log of vLLM's server, its responses or AIPerf's records with their acceptance, a metrics page of vLLM "
    "or SGLang"
)
MAX_FIRST_LINES = 100_000  # of a log, in which a report or the memory must have been met


def read_engine_files(paths: Sequence[str | Path], served: Served | None = None) -> list[EngineFile]:
    """What each file says; two metrics pages give one entry, of what was counted in between, the earlier one first.

    A memory size that is known from a log without benchmarks is taken for the rows of other files that do not say theirs,
    where all such logs agree. Raises ForeignTraceError for a file that cannot be read, is of no known format, or is damaged.
    """
    served = served or Served()
    read: list[EngineFile] = []
    pages: list[Scrape] = []
    for path in map(Path, paths):
        found = _read(path, served)
        if isinstance(found, Scrape):
            pages.append(found)
        else:
            read.append(found)
    if len(pages) > 2:
        raise ForeignTraceError(f"{len(pages)} metrics pages are given; give one, or an earlier and a later one.")
    if pages:
        read.append(read_metrics(pages[1].since(pages[0]) if len(pages) == 2 else pages[0], served))
    sizes = {file.kv_tokens for file in read if file.kv_tokens is not None and not file.rows}
    if len(sizes) != 1:
        return read
    cell = str(sizes.pop())
    return [
        replace(
            file,
            rows=tuple({"kv_tokens": cell, **row} for row in file.rows),
            unknown=tuple(sentence for sentence in file.unknown if not sentence.startswith(THE_MEMORY)),
        )
        for file in read
    ]


def _read(path: Path, served: Served) -> EngineFile | Scrape:
    first = _first_line(path)
    if first.startswith(("{", "[")):
        if _is_requests(first):
            return read_request_lines(path)
        objects = read_objects(path)
        where, whole = objects[0]
        if "benchmarks" in whole:
            return read_guidellm(path, where, whole, served)
        if kind_of(whole) is not None:
            return read_bench_json(path, objects, served)
    elif is_prometheus(first):
        return read_scrape(path)
    elif is_bench_text([line.decode("utf-8", "replace") for _, line in islice(raw_lines(path), MAX_FIRST_LINES)]):
        return read_bench_text(path, served)
    raise ForeignTraceError(f"{path}, line 1 begins no format that we know; known are {KNOWN}.")


def _is_requests(first: str) -> bool:
    """Whether a file's first line is a request with its acceptance."""
    try:
        value = parse_json(first)
    except ValueError:
        return False
    return isinstance(value, dict) and is_request_line(value)


def _first_line(path: Path) -> str:
    """The first line that is not blank. Raises ForeignTraceError where there is none."""
    line = next((line for _, line in raw_lines(path) if line), b"")
    if not line:
        raise ForeignTraceError(f"{path} is empty; known formats are {KNOWN}.")
    return line.decode("utf-8", "replace")

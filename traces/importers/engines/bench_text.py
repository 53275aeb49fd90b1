"""Text of a saved log: the console report of `vllm bench serve` or SGLang's bench_serving, and lines of vLLM's server.

Reports stand between "Serving Benchmark Result" and a line of "="; a log may hold many. Read of the server: "GPU KV cache
size: 69,232 tokens", which holds for the reports after it, and "SpecDecoding metrics:" lines, each of which counts what
happened since the one before; rates there are fractions of all drafts, in the report percent. Words before a label, such as a
time or a process, do not matter. TPOT is without the first token, as the report says; ITL is not read (see `bench_json`).
"""

from __future__ import annotations

import re
from pathlib import Path

from traces.importers.base import ForeignTraceError, raw_lines
from traces.importers.engines.records import THE_MEMORY, AcceptanceRecord, EngineFile, Served, cells_of
from traces.importers.server_bench import bench_of

TITLE = "Serving Benchmark Result"
_LABELS = {
    "Successful requests": "n_requests",
    "Failed requests": "failed",
    "Maximum request concurrency": "max_concurrency",
    "Max request concurrency": "max_concurrency",
    "Request rate configured (RPS)": "request_rate",
    "Traffic request rate": "request_rate",
    "Benchmark duration (s)": "duration_s",
    "Total input tokens": "input_tokens",
    "Total generated tokens": "output_tokens",
    "Output token throughput (tok/s)": "output_tok_s",
    "Mean TTFT (ms)": "mean_ttft_ms",
    "Median TTFT (ms)": "median_ttft_ms",
    "P99 TTFT (ms)": "p99_ttft_ms",
    "Mean TPOT (ms)": "mean_tpot_ms",
    "Median TPOT (ms)": "median_tpot_ms",
    "P99 TPOT (ms)": "p99_tpot_ms",
    "Acceptance length": "acceptance_length",
    "Accept length": "acceptance_length",
    "Drafts": "drafts",
    "Draft tokens": "draft_tokens",
}
_NEEDED = (
    "n_requests",
    "duration_s",
    "input_tokens",
    "output_tokens",
    "output_tok_s",
    "mean_tpot_ms",
    "median_ttft_ms",
)
_LINE = re.compile(r"(?:^|\s)(" + "|".join(map(re.escape, sorted(_LABELS, key=len, reverse=True))) + r"):\s+(\S+)\s*$")
_POSITION = re.compile(r"Position (\d+):\s+(\S+)\s*$")
_END = re.compile(r"={20,}\s*$")
_MEMORY = re.compile(r"GPU KV cache size:\s*([\d,]+) tokens")
_SPEC = re.compile(
    r"SpecDecoding metrics:.*Mean acceptance length: ([\d.]+).*Drafted: (\d+) tokens.*"
    r"Per-position acceptance rate: ([\d.]+(?:, [\d.]+)*)"
)
_MAX_LINE = 10_000


def is_bench_text(first_lines: list[str]) -> bool:
    """Whether one of these lines is of such a log."""
    return any(TITLE in line or _MEMORY.search(line) or "SpecDecoding metrics:" in line for line in first_lines)


def read_bench_text(path: Path, served: Served) -> EngineFile:
    """All reports of a log. Raises ForeignTraceError with file and line where one is cut, or a value is no number."""
    rows: list[dict[str, str]] = []
    records: list[AcceptanceRecord] = []
    intervals: list[tuple[float, tuple[float, ...]]] = []
    memory: int | None = None
    unknown: list[str] = []
    block: dict[str, str] | None = None
    start = ""
    for line_number, raw in raw_lines(path):
        line, where = raw[:_MAX_LINE].decode("utf-8", "replace"), f"{path}, line {line_number}"
        if TITLE in line:
            if block is not None:
                raise ForeignTraceError(
                    f"{start}: this report has no end before the next one begins; the log is damaged."
                )
            block, start = {}, where
        elif block is not None and _END.search(line):
            record = _acceptance(start, block, served)
            row = _row(start, block, record, memory, served)
            block = None
            if record is not None:
                records.append(record)
            if row is None:
                unknown.append(f"K of {start}, so that it gives no benchmark: give it with --draft-length")
            else:
                rows.append(row)
                bench_of(start, row)
        elif block is not None:
            _note(where, line, block)
        elif found := _MEMORY.search(line):
            memory = int(found[1].replace(",", "") or 0)
        elif found := _SPEC.search(line):
            rates = tuple(float(rate) for rate in found[3].split(", "))
            intervals.append((int(found[2]) / len(rates), rates))
    if block is not None:
        raise ForeignTraceError(f"{start}: this report has no end, a line of '='; the log was cut.")
    if intervals:
        records.append(_of_intervals(path, intervals))
    if not rows and not records and memory is None:
        raise ForeignTraceError(f"{path} has no report of a benchmark, no acceptance and no memory size that we know.")
    if memory is None:
        unknown.append(f"{THE_MEMORY}: the log has no line 'GPU KV cache size'; give a server's log, or --kv-tokens")
    understood = [f"{len(rows)} reports"] if rows else []
    understood += [f"acceptance of {len(intervals)} intervals"] if intervals else []
    understood += [f"a memory of {memory} tokens"] if memory is not None else []
    return EngineFile(
        path=path,
        format="log of a benchmark or a server",
        rows=tuple(rows),
        acceptance=tuple(records),
        kv_tokens=memory,
        understood=tuple(understood),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _note(where: str, line: str, block: dict[str, str]) -> None:
    """What a line of a report says. Rates by position are kept joined, in percent."""
    if found := _POSITION.search(line):
        rates = block.get("per_position_pct", "")
        if int(found[1]) != (rates.count(";") + 1 if rates else 0):
            raise ForeignTraceError(f"{where}: position {found[1]} is out of order; the report is damaged.")
        block["per_position_pct"] = f"{rates};{found[2]}" if rates else found[2]
        _number(where, "a rate by position", found[2])
    elif found := _LINE.search(line):
        value = found[2].replace(",", "")
        _number(where, found[1], value)
        block[_LABELS[found[1]]] = value


def _number(where: str, what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ForeignTraceError(f"{where}: {what} must be a number, but got {text!r:.40}.") from None


def _acceptance(where: str, block: dict[str, str], served: Served) -> AcceptanceRecord | None:
    if "acceptance_length" not in block and "per_position_pct" not in block:
        return None
    rates = tuple(float(rate) / 100 for rate in block.get("per_position_pct", "").split(";") if rate)
    drafts = float(block.get("drafts", 0)) or None
    length = len(rates) or served.draft_length
    if not length and drafts and "draft_tokens" in block:
        length = round(float(block["draft_tokens"]) / drafts)
    mean = float(block["acceptance_length"]) if "acceptance_length" in block else 1 + sum(rates)
    try:
        return AcceptanceRecord(
            source=where, draft_length=length or None, mean_acceptance_length=mean, marginal=rates, num_drafts=drafts
        )
    except ValueError as error:
        raise ForeignTraceError(str(error)) from None


def _row(
    where: str, block: dict[str, str], record: AcceptanceRecord | None, memory: int | None, served: Served
) -> dict[str, str] | None:
    """Cells of a benchmark; None where K is unknown."""
    if missing := [name for name in _NEEDED if name not in block]:
        raise ForeignTraceError(f"{where}: this report lacks {', '.join(missing)}; is it whole?")
    if record is not None and record.draft_length is None:
        return None
    kept = {name: value for name, value in block.items() if name not in ("failed", "draft_tokens")}
    defaults = {"max_concurrency": block["n_requests"], "request_rate": "inf"}
    return (
        defaults
        | kept
        | cells_of(
            dataset=served.dataset or None,
            method=served.method if record else "none",
            draft=served.draft if record else None,
            k=record.draft_length if record else 0,
            kv_tokens=memory,
        )
    )


def _of_intervals(path: Path, intervals: list[tuple[float, tuple[float, ...]]]) -> AcceptanceRecord:
    """Weighted by drafts. Raises ForeignTraceError where K changed within the log."""
    lengths = {len(rates) for _, rates in intervals}
    if len(lengths) > 1:
        raise ForeignTraceError(
            f"{path}: lines of acceptance have {sorted(lengths)} positions; give a log of one server."
        )
    (length,), total = lengths, sum(drafts for drafts, _ in intervals) or 1.0
    marginal = tuple(sum(drafts * rates[position] for drafts, rates in intervals) / total for position in range(length))
    try:
        return AcceptanceRecord(
            source=f"{path}, {len(intervals)} lines of acceptance",
            draft_length=length,
            mean_acceptance_length=1 + sum(marginal),
            marginal=marginal,
            num_drafts=total,
        )
    except ValueError as error:
        raise ForeignTraceError(str(error)) from None

"""GuideLLM's benchmarks.json: requests one by one, under one load after the other.

request_start_time and request_end_time are seconds since 1970, time_to_first_token_ms and inter_token_latency_ms milliseconds.
inter_token_latency_ms is what we and vLLM call TPOT; time_per_output_token_ms counts the first token and is not read.
output_tokens_per_iteration is tokens a delivery, about the mean acceptance length as a client sees it. Lists of requests may
be samples (--sample-requests), whose sums mean nothing: such a benchmark is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from traces.importers.base import ForeignTraceError
from traces.importers.engines.json_runs import number, text_of_number
from traces.importers.engines.records import THE_MEMORY, AcceptanceRecord, EngineFile, Served, cells_of
from traces.importers.server_bench import bench_of

_CLOSED = ("synchronous", "concurrent", "throughput")  # strategies that send as soon as one ends


def read_guidellm(path: Path, where: str, report: Mapping[str, Any], served: Served) -> EngineFile:
    """A row a benchmark. Raises ForeignTraceError where one is damaged, a sample, or without a request that ended well."""
    rows: list[dict[str, str]] = []
    records: list[AcceptanceRecord] = []
    unknown = [
        f"{THE_MEMORY}: give a server's log as well, or --kv-tokens",
        "acceptance by position: clients cannot see it",
    ]
    benchmarks = report["benchmarks"]
    if not isinstance(benchmarks, list) or not benchmarks:
        raise ForeignTraceError(f"{where}: benchmarks must be a list with at least one benchmark.")
    for index, benchmark in enumerate(benchmarks):
        place = f"{path}, benchmark {index}"
        requests = _successful(place, benchmark)
        row, mean = _row(place, benchmark, requests, served)
        if mean is not None and mean > 1.01:
            try:
                records.append(
                    AcceptanceRecord(source=place, draft_length=served.draft_length, mean_acceptance_length=mean)
                )
            except ValueError as error:
                raise ForeignTraceError(str(error)) from None
            if served.draft_length is None:
                unknown.append("K, so that benchmarks with speculation give no row: give it with --draft-length")
                continue
            row |= cells_of(method=served.method, draft=served.draft, k=served.draft_length, acceptance_length=mean)
        rows.append(row)
        bench_of(place, row)
    return EngineFile(
        path=path,
        format="GuideLLM",
        rows=tuple(rows),
        acceptance=tuple(records),
        understood=(f"{len(benchmarks)} benchmarks, {len(records)} of them with speculation",),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _successful(place: str, benchmark: Any) -> Sequence[Mapping[str, Any]]:
    """The requests that ended well, all of them."""
    groups = benchmark.get("requests") if isinstance(benchmark, dict) else None
    requests = groups.get("successful") if isinstance(groups, dict) else None
    if not isinstance(requests, list) or not requests or not all(isinstance(request, dict) for request in requests):
        raise ForeignTraceError(f"{place} has no requests.successful; did any request end well?")
    for holder in (benchmark, benchmark.get("metrics")):
        totals = holder.get("request_totals") if isinstance(holder, dict) else None
        count = totals.get("successful") if isinstance(totals, dict) else None
        if isinstance(count, int) and count > len(requests):
            raise ForeignTraceError(
                f"{place} holds a sample of {len(requests)} of {count} requests; run GuideLLM without --sample-requests."
            )
    return requests


def _row(
    place: str, benchmark: Mapping[str, Any], requests: Sequence[Mapping[str, Any]], served: Served
) -> tuple[dict[str, str], float | None]:
    """Cells without a draft, and the mean acceptance length that clients saw; None: they did not say."""

    def column(name: str) -> list[float]:
        return [number(place, request, name) or 0.0 for request in requests]

    starts, ends = np.array(column("request_start_time")), np.array(column("request_end_time"))
    if np.any(ends <= starts):
        raise ForeignTraceError(f"{place}: a request ends no later than it starts; are these seconds?")
    duration_s, num = float(ends.max() - starts.min()), len(requests)
    outputs = column("output_tokens")
    tpot_ms = [value for value, tokens in zip(column("inter_token_latency_ms"), outputs, strict=True) if tokens > 1]
    if not tpot_ms:
        raise ForeignTraceError(f"{place}: no request has two output tokens, so that there is no TPOT.")
    ttft_ms = column("time_to_first_token_ms")
    is_closed = _strategy(benchmark) in _CLOSED
    row = cells_of(
        dataset=served.dataset or None,
        method="none",
        k=0,
        n_requests=num,
        max_concurrency=_most_at_once(starts, ends) if is_closed else num,
        request_rate="inf"
        if is_closed
        else repr((num - 1) / float(np.ptp(starts)) if np.ptp(starts) else 1 / duration_s),
        duration_s=repr(duration_s),
        input_tokens=text_of_number(sum(column("prompt_tokens"))),
        output_tokens=text_of_number(sum(outputs)),
        output_tok_s=repr(sum(outputs) / duration_s),
        mean_tpot_ms=repr(fmean(tpot_ms)),
        median_tpot_ms=repr(median(tpot_ms)),
        mean_ttft_ms=repr(fmean(ttft_ms)),
        median_ttft_ms=repr(median(ttft_ms)),
    )
    if not all(request.get("output_tokens_per_iteration") for request in requests):
        return row, None
    iterations = sum(tokens / each for tokens, each in zip(outputs, column("output_tokens_per_iteration"), strict=True))
    return row, sum(outputs) / iterations


def _strategy(benchmark: Mapping[str, Any]) -> str:
    """Its type, wherever a version keeps it."""
    for holder in (benchmark, benchmark.get("config"), benchmark.get("args")):
        strategy = holder.get("strategy") if isinstance(holder, dict) else None
        if isinstance(strategy, dict):
            return str(strategy.get("type_") or strategy.get("type") or "")
        if isinstance(strategy, str):
            return strategy
    return ""


def _most_at_once(starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> int:
    """Requests under way together; one that starts as another ends does not meet it."""
    events = sorted([(time, 1) for time in starts] + [(time, -1) for time in ends])
    return int(np.cumsum([step for _, step in events]).max())

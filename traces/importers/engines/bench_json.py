"""Results of `vllm bench serve` (--save-result, --append-result) and of SGLang's bench_serving: one JSON object a run.

Both: times in milliseconds; TPOT = (latency - TTFT) / (output tokens - 1), without the first token, while ITL is the gap
between two chunks, which under speculation is one step and not one token, so that ITL is never read here. request_rate may be
the text "inf". completed, not num_prompts, are the requests that count.

vLLM: spec_decode_acceptance_rate is percent (accepted over drafted tokens, not read), while
spec_decode_per_position_acceptance_rates are fractions of all drafts (marginal). K is their number, or draft tokens
over drafts.
SGLang: accept_length is tokens a verification, the target's own included; there are no rates by position. K is
speculative_num_steps of server_info where it is there, with one branch (topk 1), and max_total_num_tokens its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.importers.base import ForeignTraceError
from traces.importers.engines.json_runs import Objects, number, numbers, text_of_number
from traces.importers.engines.records import THE_MEMORY, AcceptanceRecord, EngineFile, Served, cells_of
from traces.importers.server_bench import bench_of

VLLM, SGLANG = "vllm bench serve", "SGLang bench_serving"
_ITL = "the time of a single step: ITL is not read, since under speculation its meaning differs by tool"


def kind_of(result: Mapping[str, Any]) -> str | None:
    """Which of the two wrote it; None: neither."""
    if "mean_tpot_ms" not in result or "total_output_tokens" not in result:
        return None
    is_sglang = "accept_length" in result or "total_throughput" in result or "mean_e2e_latency_ms" in result
    return SGLANG if is_sglang else VLLM


def read_bench_json(path: Path, objects: Objects, served: Served) -> EngineFile:
    """All runs of a file. Raises ForeignTraceError with file and line where one is damaged or is no such result."""
    rows: list[dict[str, str]] = []
    records: list[AcceptanceRecord] = []
    unknown = [_ITL]
    kinds = set()
    for where, result in objects:
        kind = kind_of(result)
        if kind is None:
            raise ForeignTraceError(f"{where} is not a result of {VLLM} or {SGLANG}; are two formats mixed?")
        kinds.add(kind)
        try:
            record = _vllm(where, result) if kind == VLLM else _sglang(where, result, served)
        except ValueError as error:
            raise ForeignTraceError(str(error)) from None
        if record is not None:
            records.append(record)
            if record.draft_length is None:
                unknown.append(f"K of {where}, so that it gives no benchmark: give it with --draft-length")
                continue
            if not record.marginal:
                unknown.append("acceptance by position: a mean length only bounds what other K would do")
        failed = number(where, result, "failed", needed=False)
        if failed:
            unknown.append(f"{failed:.0f} failed requests of {where} are not in its times")
        rows.append(_row(where, result, record, served))
        bench_of(where, rows[-1])
    if not any("kv_tokens" in row for row in rows):
        unknown.append(f"{THE_MEMORY}: give a server's log as well, or --kv-tokens")
    return EngineFile(
        path=path,
        format=" and ".join(sorted(kinds)),
        rows=tuple(rows),
        acceptance=tuple(records),
        understood=(f"{len(objects)} runs, {len(records)} of them with speculation",),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _vllm(where: str, result: Mapping[str, Any]) -> AcceptanceRecord | None:
    mean = number(where, result, "spec_decode_acceptance_length", needed=False)
    rates = numbers(where, result, "spec_decode_per_position_acceptance_rates")
    drafts = number(where, result, "spec_decode_num_drafts", needed=False)
    drafted = number(where, result, "spec_decode_draft_tokens", needed=False)
    if (mean is None and not rates) or drafts == 0:
        return None
    length = len(rates) or _length(where, drafted, drafts)
    return AcceptanceRecord(
        source=where,
        draft_length=length,
        mean_acceptance_length=1 + sum(rates) if mean is None else mean,
        marginal=rates,
        num_drafts=drafts,
    )


def _length(where: str, drafted: float | None, drafts: float | None) -> int | None:
    """K, where every draft had the same."""
    if not drafts or drafted is None:
        return None
    length = drafted / drafts
    if abs(length - round(length)) > 0.02 or length < 1:
        raise ForeignTraceError(
            f"{where}: drafts have {length:.2f} tokens in the mean, so that K varied; fix it for a run."
        )
    return round(length)


def _sglang(where: str, result: Mapping[str, Any], served: Served) -> AcceptanceRecord | None:
    mean = number(where, result, "accept_length", needed=False)
    server = _server(result)
    if mean is None or (mean == 1 and not server.get("speculative_algorithm")):
        return None
    steps = number(where, server, "speculative_num_steps", needed=False)
    if number(where, server, "speculative_eagle_topk", needed=False) not in (None, 1):
        raise ForeignTraceError(f"{where}: speculative_eagle_topk is not 1; drafts that branch have no single K.")
    length = served.draft_length if steps is None else int(steps)
    return AcceptanceRecord(source=where, draft_length=length, mean_acceptance_length=mean)


def _server(result: Mapping[str, Any]) -> Mapping[str, Any]:
    server = result.get("server_info")
    return server if isinstance(server, dict) else {}


def _row(where: str, result: Mapping[str, Any], record: AcceptanceRecord | None, served: Served) -> dict[str, str]:
    """Cells of a benchmark."""
    completed = number(where, result, "completed")
    most = number(where, result, "max_concurrency", needed=False)
    times = {
        name: text_of_number(number(where, result, name, needed=name in ("mean_tpot_ms", "median_ttft_ms")))
        for name in ("mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms", "mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms")
    }
    server = _server(result)
    algorithm = str(server.get("speculative_algorithm") or served.method).lower()
    draft = str(server.get("speculative_draft_model_path") or served.draft)
    return cells_of(
        dataset=result.get("dataset_name") or served.dataset or None,
        method=algorithm if record else "none",
        draft=draft if record else None,
        k=record.draft_length if record else 0,
        kv_tokens=text_of_number(number(where, server, "max_total_num_tokens", needed=False)),
        n_requests=text_of_number(completed),
        max_concurrency=text_of_number(most or completed),
        request_rate=text_of_number(number(where, result, "request_rate")),
        duration_s=text_of_number(number(where, result, "duration")),
        input_tokens=text_of_number(number(where, result, "total_input_tokens")),
        output_tokens=text_of_number(number(where, result, "total_output_tokens")),
        output_tok_s=text_of_number(number(where, result, "output_throughput")),
        acceptance_length=record.mean_acceptance_length if record else None,
        drafts=text_of_number(record.num_drafts) if record else None,
        per_position_pct=[100 * rate for rate in record.marginal] if record and record.marginal else None,
        **times,
    )

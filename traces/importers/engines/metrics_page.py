"""The metrics page of a vLLM or SGLang server: acceptance, and the latencies that clients saw.

vLLM: counters of drafts, draft tokens and accepted tokens, and accepted tokens by position, numbered from 0. Position i over
drafts is the share of all drafts accepted at least to there (marginal). Mean acceptance length = 1 + accepted / drafts.
SGLang: the gauge spec_accept_length is a mean of lately, with no positions and no K.
Times are seconds; request_time_per_output_token is TPOT, one value a request, without the first token; inter_token_latency is
a gap between two deliveries, which under speculation is a step and not a token.
"""

from __future__ import annotations

from traces.importers.base import ForeignTraceError
from traces.importers.engines.prometheus import Scrape
from traces.importers.engines.records import THE_MEMORY, AcceptanceRecord, EngineFile, Served

_SPEC = "vllm:spec_decode_num_"
_LATENCIES = (
    ("TTFT", "time_to_first_token_seconds"),
    ("TPOT", "request_time_per_output_token_seconds"),
    ("ITL, by step", "inter_token_latency_seconds"),
)
_NO_ROW = "benchmarks: a page mixes all loads; run a benchmark for step costs"


def read_metrics(scrape: Scrape, served: Served) -> EngineFile:
    """One page, or the difference of two. Raises ForeignTraceError where it is of another program, or contradicts itself."""
    names = {name.partition(":")[0] for name, _ in scrape.values}
    if "vllm" in names:
        record, engine = _vllm(scrape), "vllm"
    elif "sglang" in names:
        record, engine = _sglang(scrape, served), "sglang"
    else:
        raise ForeignTraceError(f"{scrape.path} is a metrics page, but neither of vLLM nor of SGLang.")
    understood = []
    for name, histogram in _LATENCIES:
        mean, high = scrape.mean(f"{engine}:{histogram}"), scrape.quantile(f"{engine}:{histogram}", 0.99)
        if mean is not None and high is not None:
            understood.append(f"{name} {1e3 * mean:.3g} ms in the mean, p99 {1e3 * high:.3g} ms")
    running = scrape.total("vllm:num_requests_running" if engine == "vllm" else "sglang:num_running_reqs")
    if running is not None:
        understood.append(f"{running:.0f} running requests at the scrape")
    unknown = [_NO_ROW, f"{THE_MEMORY} in tokens: it is in the server's log (GPU KV cache size)"]
    if not scrape.is_difference and engine == "vllm":
        unknown.insert(0, "a stretch of time: counters began with the server; give an earlier page as well")
    if record is None:
        unknown.insert(0, "acceptance: nothing was drafted")
    elif not record.marginal:
        unknown.insert(0, "acceptance by position: a mean length only bounds what other K would do")
    return EngineFile(
        path=scrape.path,
        format=f"metrics of {'vLLM' if engine == 'vllm' else 'SGLang'}" + (", two pages" * scrape.is_difference),
        acceptance=() if record is None else (record,),
        understood=tuple(understood),
        unknown=tuple(unknown),
    )


def _vllm(scrape: Scrape) -> AcceptanceRecord | None:
    drafts = scrape.total(f"{_SPEC}drafts_total")
    if not drafts:
        return None
    accepted = scrape.total(f"{_SPEC}accepted_tokens_total") or 0.0
    drafted = scrape.total(f"{_SPEC}draft_tokens_total") or 0.0
    if accepted > drafted:
        raise ForeignTraceError(f"{scrape.path}: {accepted:g} accepted of {drafted:g} drafted tokens cannot be.")
    by_position = scrape.by_label(f"{_SPEC}accepted_tokens_per_pos_total", "position")
    try:
        positions = {int(position): count for position, count in by_position.items()}
    except ValueError:
        raise ForeignTraceError(
            f"{scrape.path}: positions must be whole numbers, but are {sorted(by_position)}."
        ) from None
    if sorted(positions) != list(range(len(positions))):
        raise ForeignTraceError(f"{scrape.path}: positions must be 0, 1, ..., but are {sorted(positions)}.")
    try:
        return AcceptanceRecord(
            source=str(scrape.path),
            draft_length=len(positions) or max(1, round(drafted / drafts)),
            mean_acceptance_length=1 + accepted / drafts,
            marginal=tuple(positions[position] / drafts for position in sorted(positions)),
            num_drafts=drafts,
        )
    except ValueError as error:
        raise ForeignTraceError(str(error)) from None


def _sglang(scrape: Scrape, served: Served) -> AcceptanceRecord | None:
    found = [value for (name, _), value in scrape.values.items() if name == "sglang:spec_accept_length" and value > 0]
    if not found:
        return None
    try:
        return AcceptanceRecord(
            source=str(scrape.path), draft_length=served.draft_length, mean_acceptance_length=sum(found) / len(found)
        )
    except ValueError as error:
        raise ForeignTraceError(str(error)) from None

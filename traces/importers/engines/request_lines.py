"""Acceptance request by request: responses of vLLM with metrics.speculative_decoding, and AIPerf's profile_export.jsonl.

    {"id": "cmpl-1", "metrics": {"speculative_decoding": {"acceptance_histogram": [8, 0, 6, 6], "num_spec_steps": 20,
     "num_draft_tokens": 60, "num_spec_tokens": 3}}}
    {"metadata": {"request_start_ns": 1}, "spec_decode_acceptance": {"acceptance_histogram": {"0": 8, "2": 6, "3": 6}, ...}}

A histogram counts steps by how many draft tokens they accepted, dense (a list from 0 to K) or sparse (an object whose keys are
text, without the zeros). Position i was accepted in the steps that accepted at least i tokens. Steps without a draft are not
among them. Warm-up, cancelled and failed requests of AIPerf are left out, and so are requests without such a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.importers.base import ForeignTraceError, numbered_lines
from traces.importers.engines.json_runs import number
from traces.importers.engines.records import AcceptanceRecord, EngineFile
from traces.mistakes import parse_json

MIN_FULL_SHARE = 0.9  # of steps times K that was drafted; the last step of a request may be shorter


def is_request_line(first: Mapping[str, Any]) -> bool:
    """Whether a file's first object is of this kind."""
    return "spec_decode_acceptance" in first or "request_start_ns" in _object(first, "metadata") or bool(_spec(first))


def read_request_lines(path: Path) -> EngineFile:
    """All requests together. Raises ForeignTraceError with file and line where one is damaged, and where K varied."""
    steps: Counter[int] = Counter()
    drafted, lengths, num_requests, num_left_out = 0.0, set(), 0, 0
    for where, line in numbered_lines(path):
        try:
            given = parse_json(line)
        except ValueError as error:
            raise ForeignTraceError(f"{where} is not JSON: {str(error).splitlines()[0]}; was the file cut?") from None
        if not isinstance(given, dict):
            raise ForeignTraceError(f"{where}: a request is a JSON object, but got {type(given).__name__}.")
        spec, metadata = _spec(given), _object(given, "metadata")
        is_left_out = given.get("error") or metadata.get("was_cancelled") or metadata.get("benchmark_phase") == "warmup"
        if not spec or is_left_out:
            num_left_out += 1
            continue
        num_requests += 1
        steps += _histogram(where, spec.get("acceptance_histogram"))
        drafted += number(where, spec, "num_draft_tokens") or 0.0
        length = number(where, spec, "num_spec_tokens", needed=False)
        lengths.add(None if length is None else int(length))
    if not steps:
        raise ForeignTraceError(
            f"{path} has no request with an acceptance; start vLLM with --per-request-spec-decode-metrics summary."
        )
    total = sum(steps.values())
    length = _length(path, lengths, drafted, total, max(steps))
    marginal = tuple(
        sum(count for accepted, count in steps.items() if accepted >= place) / total for place in range(1, length + 1)
    )
    left_out = (f"{num_left_out} requests: without a record, warm-up, cancelled or failed",) if num_left_out else ()
    return EngineFile(
        path=path,
        format="requests with their acceptance",
        acceptance=(
            AcceptanceRecord(
                source=str(path),
                draft_length=length,
                mean_acceptance_length=1 + sum(marginal),
                marginal=marginal,
                num_drafts=total,
            ),
        ),
        understood=(f"{num_requests} requests, {total} steps with a draft",),
        unknown=(
            *left_out,
            "benchmarks: the file does not say how requests were sent; --traffic of a plan reads its arrivals",
        ),
    )


def _spec(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(given, "spec_decode_acceptance") or _object(_object(given, "metrics"), "speculative_decoding")


def _object(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    return value if isinstance(value, dict) else {}


def _histogram(where: str, given: Any) -> Counter[int]:
    """Steps by accepted tokens, from either form."""
    if isinstance(given, list):
        pairs = list(enumerate(given))
    elif isinstance(given, dict) and all(key.isascii() and key.isdigit() and len(key) < 4 for key in given):
        pairs = [(int(key), count) for key, count in given.items()]
    else:
        raise ForeignTraceError(
            f"{where}: acceptance_histogram must count steps by accepted tokens, but got {given!r:.60}."
        )
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for _, count in pairs):
        raise ForeignTraceError(f"{where}: acceptance_histogram must hold whole numbers, but got {given!r:.60}.")
    return Counter({accepted: count for accepted, count in pairs if count})


def _length(path: Path, named: set[int | None], drafted: float, num_steps: int, most: int) -> int:
    """K of all requests."""
    length = named.pop() if len(named) == 1 else None
    if length is None:
        length = round(drafted / num_steps)
    if length < max(most, 1) or not MIN_FULL_SHARE <= drafted / (num_steps * length) <= 1 + 1e-9:
        raise ForeignTraceError(
            f"{path}: {num_steps} steps drafted {drafted:g} tokens and accepted up to {most}, so that K varied or is wrong; "
            "fix it for a recording."
        )
    return length

"""Files as engines and benchmarks write them, made up for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VLLM_RUN: dict[str, Any] = {
    "date": "20260801-101010", "backend": "vllm", "model_id": "org/target", "num_prompts": 50, "request_rate": "inf",
    "burstiness": 1.0, "max_concurrency": 4, "duration": 50.0, "completed": 50, "failed": 0, "total_input_tokens": 7000,
    "total_output_tokens": 10000, "request_throughput": 1.0, "request_goodput": None, "output_throughput": 200.0,
    "total_token_throughput": 340.0, "mean_ttft_ms": 90.0, "median_ttft_ms": 89.0, "p99_ttft_ms": 130.0,
    "mean_tpot_ms": 19.0, "median_tpot_ms": 18.5, "p99_tpot_ms": 25.0, "mean_itl_ms": 42.0, "median_itl_ms": 41.0,
}  # fmt: skip
VLLM_SPEC: dict[str, Any] = VLLM_RUN | {
    "spec_decode_acceptance_rate": 62.0, "spec_decode_acceptance_length": 2.24, "spec_decode_num_drafts": 4450,
    "spec_decode_draft_tokens": 8900, "spec_decode_accepted_tokens": 5518,
    "spec_decode_per_position_acceptance_rates": [0.725, 0.515],
}  # fmt: skip
SGLANG_RUN: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "sharegpt", "request_rate": "inf", "max_concurrency": None,
    "duration": 50.0, "completed": 50, "total_input_tokens": 7000, "total_output_tokens": 10000,
    "output_throughput": 200.0, "total_throughput": 340.0, "mean_e2e_latency_ms": 4000.0, "mean_ttft_ms": 90.0,
    "median_ttft_ms": 89.0, "mean_tpot_ms": 19.0, "median_tpot_ms": 18.5, "mean_itl_ms": 19.0, "concurrency": 3.9,
    "accept_length": 2.24,
    "server_info": {
        "speculative_algorithm": "EAGLE3", "speculative_num_steps": 3, "speculative_eagle_topk": 1,
        "speculative_draft_model_path": "org/draft", "max_total_num_tokens": 69000,
    },
}  # fmt: skip
REPORT = """\
(APIServer pid=7) INFO 08-01 10:10:10 [kv_cache.py:1] GPU KV cache size: 69,232 tokens
============ Serving Benchmark Result ============
Successful requests:                     50
Failed requests:                         0
Maximum request concurrency:             4
Request rate configured (RPS):           4.00
Benchmark duration (s):                  50.00
Total input tokens:                      7000
Total generated tokens:                  10,000
Request throughput (req/s):              1.00
Output token throughput (tok/s):         200.00
Peak concurrent requests:                8.00
Total Token throughput (tok/s):          340.00
---------------Time to First Token----------------
Mean TTFT (ms):                          90.00
Median TTFT (ms):                        89.00
P99 TTFT (ms):                           130.00
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          19.00
Median TPOT (ms):                        18.50
P99 TPOT (ms):                           25.00
---------------Inter-token Latency----------------
Mean ITL (ms):                           42.00
---------------Speculative Decoding---------------
Acceptance rate (%):                     62.00
Acceptance length:                       2.24
Drafts:                                  4450
Draft tokens:                            8900
Accepted tokens:                         5518
Per-position acceptance (%):
  Position 0:                            72.50
  Position 1:                            51.50
==================================================
"""


def interval(drafted: int, *rates: float) -> str:
    """A line of vLLM's server on what was drafted lately."""
    positions = ", ".join(f"{rate:.3f}" for rate in rates)
    return (
        f"INFO SpecDecoding metrics: Mean acceptance length: {1 + sum(rates):.2f}, Accepted throughput: 1.00 tokens/s, "
        f"Drafted throughput: 2.00 tokens/s, Accepted: 1 tokens, Drafted: {drafted} tokens, Per-position acceptance rate: "
        f"{positions}, Avg Draft acceptance rate: 50.0%\n"
    )


SERVER_LOG = "INFO loading\nINFO GPU KV cache size: 32,528 tokens\n" + interval(200, 0.6, 0.4) + interval(600, 0.8, 0.6)


def page(drafts: int, positions: tuple[int, ...], *, engine: str = "0", more: str = "") -> str:
    """A metrics page of vLLM."""
    labels = f'engine="{engine}",model_name="a \\"model\\", with a comma"'
    counted = "".join(
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="{place}"}} {count}.0\n'
        for place, count in enumerate(positions)
    )
    return (
        "# HELP vllm:spec_decode_num_drafts_total Number of drafts.\n# TYPE vllm:spec_decode_num_drafts_total counter\n"
        f"vllm:spec_decode_num_drafts_total{{{labels}}} {drafts}.0 1785578400000\n"
        f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {drafts * len(positions)}.0\n"
        f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} {sum(positions):.6e}\n"
        f"{counted}{more}"
    )


def guidellm(**changes: Any) -> dict[str, Any]:
    """A report of two requests under way together, and one after them."""
    spans = ((100.0, 104.0), (100.5, 104.0), (104.0, 108.0))
    requests = [
        {
            "request_start_time": start, "request_end_time": end, "request_latency": end - start, "prompt_tokens": 100,
            "output_tokens": 101, "time_to_first_token_ms": 500.0, "inter_token_latency_ms": 30.0,
            "time_per_output_token_ms": 35.0, "output_tokens_per_iteration": 2.0,
        }
        for start, end in spans
    ]  # fmt: skip
    benchmark = {
        "config": {"strategy": {"type_": "concurrent", "streams": 2}},
        "metrics": {"request_totals": {"successful": 3, "errored": 0, "incomplete": 0, "total": 3}},
        "requests": {"successful": requests, "incomplete": [], "errored": []},
    }
    return {"metadata": {"version": 1}, "benchmarks": [benchmark | changes]}


def response(histogram: list[int] | dict[str, int], drafted: int, **more: Any) -> dict[str, Any]:
    """A response of vLLM with its acceptance, with K = 3."""
    spec = {"acceptance_histogram": histogram, "num_draft_tokens": drafted, "num_spec_tokens": 3}
    return {"id": "cmpl-1", "metrics": {"speculative_decoding": spec | more}}


def aiperf(histogram: dict[str, int], drafted: int, **metadata: Any) -> dict[str, Any]:
    """A record of AIPerf of the same."""
    spec = response(histogram, drafted)["metrics"]["speculative_decoding"]
    return {
        "metadata": {"request_start_ns": 10**18, "was_cancelled": False, "benchmark_phase": "profiling"} | metadata,
        "metrics": {"request_latency": {"value": 5.0, "unit": "ms"}},
        "spec_decode_acceptance": spec | {"engine": "vllm"},
        "error": None,
    }


def write(path: Path, *objects: Mapping[str, Any], indent: int | None = None) -> Path:
    path.write_text("\n".join(json.dumps(each, indent=indent) for each in objects) + "\n")
    return path

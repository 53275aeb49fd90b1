"""From what a user of vLLM has in hand, results of runs and saved logs, to a configuration: judged by the whole table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.plan.dialects.vllm import read_vllm
from tests.analysis.command import call
from traces.importers.server_bench import ServerBench, read_server_bench

TABLE = Path(__file__).parents[4] / ".." / "shared" / "data" / "serving" / "vllm_qwen3_32b_h100_94gb_instructcoder.csv"
LABELS = (
    ("Successful requests", "n_requests"), ("Maximum request concurrency", "max_concurrency"),
    ("Request rate configured (RPS)", "request_rate"), ("Benchmark duration (s)", "duration_s"),
    ("Total input tokens", "input_tokens"), ("Total generated tokens", "output_tokens"),
    ("Output token throughput (tok/s)", "output_tok_s"), ("Mean TTFT (ms)", "mean_ttft_ms"),
    ("Median TTFT (ms)", "median_ttft_ms"), ("P99 TTFT (ms)", "p99_ttft_ms"), ("Mean TPOT (ms)", "mean_tpot_ms"),
    ("Median TPOT (ms)", "median_tpot_ms"), ("P99 TPOT (ms)", "p99_tpot_ms"), ("Mean ITL (ms)", "mean_itl_ms"),
)  # fmt: skip
KEYS = {
    "n_requests": "completed", "duration_s": "duration", "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens", "output_tok_s": "output_throughput",
    "acceptance_rate_pct": "spec_decode_acceptance_rate", "acceptance_length": "spec_decode_acceptance_length",
    "drafts": "spec_decode_num_drafts", "draft_tokens": "spec_decode_draft_tokens",
}  # fmt: skip


def as_json(row: dict[str, str]) -> str:
    """A run as `vllm bench serve --append-result` saves it."""
    result: dict[str, Any] = {"backend": "vllm", "model_id": "target", "num_prompts": int(float(row["n_requests"]))}
    for name, value in row.items():
        if name in KEYS or name.endswith("_ms") or name in ("max_concurrency", "request_rate"):
            result[KEYS.get(name, name)] = int(value) if name == "max_concurrency" else float(value)
    rates = [float(rate) / 100 for rate in row["per_position_pct"].split(";")]
    return json.dumps(result | {"spec_decode_per_position_acceptance_rates": rates})


def as_log(row: dict[str, str]) -> str:
    """A run as its console report in a log, after the line on the server's memory."""
    lines = [f"INFO GPU KV cache size: {int(row['kv_tokens']):,} tokens", " Serving Benchmark Result ".center(50, "=")]
    lines += [f"{label + ':':<40} {row[name]}" for label, name in LABELS]
    if row["per_position_pct"]:
        lines += [f"Acceptance length:   {row['acceptance_length']}", f"Drafts:   {row['drafts']}"]
        lines += [f"  Position {place}:   {rate}" for place, rate in enumerate(row["per_position_pct"].split(";"))]
    return "\n".join([*lines, "=" * 50, ""])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "all_runs", "worst"),
    [
        ("Qwen3-1.7B", True, 0.03),
        ("Qwen3-4B", True, 0.03),
        ("Qwen3-32B-speculator.eagle3", True, 0.03),
        ("Qwen3-1.7B", False, 0.04),
    ],
)
def test_files_of_runs_lead_to_the_draft_lengths_that_the_whole_table_wants(
    draft: str, all_runs: bool, worst: float, tmp_path: Path
) -> None:
    """From 63 runs, or 15 of them. The 15 hold no draft of 4 tokens, which here is 2 to 3% slower than its neighbours
    with each draft (the 1.7B at 16 requests: K = 3, 4, 5 give 759, 748, 779 tokens/s): no law of them can know, so that one
    load may miss by 4%. Where the draft leaves too little memory for all requests, lengths are compared on the server as it
    is, with the draft."""
    if not TABLE.exists():
        pytest.skip(f"{TABLE} is not here")
    measured = {_key(bench): bench for bench in read_server_bench(TABLE) if bench.draft in ("", draft)}
    with TABLE.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["draft"] in ("", draft) and (all_runs or _is_few(row))]
    runs, log, folder = tmp_path / "runs.jsonl", tmp_path / "log.txt", tmp_path / "imported"
    odd = [row for row in rows if int(row["k"]) % 2]
    runs.write_text("\n".join(map(as_json, odd)))
    log.write_text("INFO started\n" + "".join(as_log(row) for row in rows if row not in odd))
    options = ("--draft", draft, "--kv-tokens", odd[0]["kv_tokens"], "--draft-method", odd[0]["method"])
    assert call("import", str(runs), str(log), *options, "--output-dir", str(folder)) == 0

    benches = read_server_bench(folder / "benches.csv")
    assert len(benches) == len(rows) == (63 if all_runs else 15)
    for bench in benches:
        _same(bench, measured[_key(bench)])

    assert call("calibrate", "--bench", str(folder), "--output", str(tmp_path / "calibrated")) == 0
    table = read_vllm((tmp_path / "calibrated" / "vllm.json").read_text())
    speeds = {key: bench.output_tokens_per_s for key, bench in measured.items()}
    num_requests = sum(bench.num_requests for bench in benches)
    request_tokens = sum(bench.input_tokens + bench.output_tokens for bench in benches) / num_requests
    room = next(bench.kv_tokens for bench in benches if bench.draft_length and bench.kv_tokens) / request_tokens
    regrets = {}
    for load in sorted({load for _, load in speeds}):
        length = table.length_at(min(load, int(room)), 0)
        lengths = range(7) if load <= room else range(1, 7)
        regrets[load] = 1 - speeds[length, load] / max(speeds[each, load] for each in lengths)
    assert max(regrets.values()) <= worst, regrets
    assert sum(regrets.values()) / len(regrets) <= 0.013, regrets


def _is_few(row: dict[str, str]) -> bool:
    """Without speculation all loads; with it two lengths at three loads."""
    return row["k"] == "0" or (row["k"] in ("1", "5") and row["max_concurrency"] in ("1", "16", "128"))


def _key(bench: ServerBench) -> tuple[int, int]:
    return bench.draft_length, bench.max_concurrency


def _same(bench: ServerBench, expected: ServerBench) -> None:
    for name in ("kv_tokens", "num_requests", "arrivals_per_s", "method", "draft"):
        assert getattr(bench, name) == getattr(expected, name), name
    for name in ("duration_s", "output_tokens", "mean_tpot_s", "median_ttft_s", "p99_ttft_s", "mean_acceptance_length"):
        assert getattr(bench, name) == pytest.approx(getattr(expected, name)), name

"""Valid files of every reader that plans, advice and imports stand on, for the fuzzing of these readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from analysis.plan.dialects.sglang import read_sglang, write_sglang
from analysis.plan.dialects.tensorrt_llm import read_tensorrt_llm, write_tensorrt_llm
from analysis.plan.dialects.vllm import read_vllm, write_vllm
from analysis.plan.numbers import acceptance_and_record, costs_from
from sim.serving.rounds.length_rules import LengthTable
from tests.traces.importers.engines import engine_files
from tests.traces.importers.traffic.formats import FORMATS, ROWS
from traces.fits.step_costs import ForwardCost, StepCosts
from traces.importers.engines.catalog import read_engine_files
from traces.importers.engines.records import AcceptanceRecord
from traces.importers.server_bench import read_server_bench
from traces.importers.traffic.catalog import holds_measured, read_lengths, read_measured, read_traffic, read_windows

Read = Callable[[Path], object]
TABLE = LengthTable.of((1, 8, 3), (9, 40, 1), (41, None, 0))
BENCHES = (
    "method,draft,k,n_requests,max_concurrency,request_rate,duration_s,input_tokens,output_tokens,output_tok_s,"
    "mean_tpot_ms,median_ttft_ms,kv_tokens,per_position_pct\n"
    "none,,0,80,1,inf,100,1600,8000,80,12,30,40000,\n"
    "draft_model,d,2,80,8,4,50,1600,8000,160,11,40,30000,70;50\n"
)
ENGINE_FILES = {
    "vllm_runs.jsonl": f"{json.dumps(engine_files.VLLM_RUN)}\n{json.dumps(engine_files.VLLM_SPEC)}",
    "sglang_run.jsonl": json.dumps(engine_files.SGLANG_RUN),
    "report.log": engine_files.REPORT,
    "server.log": engine_files.SERVER_LOG,
    "page.txt": engine_files.page(100, (90, 80)),
    "guidellm.json": json.dumps(engine_files.guidellm(), indent=1),
    "responses.jsonl": json.dumps(engine_files.response([8, 0, 6, 6], 60)),
}


def write_serving_files(folder: Path) -> dict[str, dict[str, Read]]:
    """Write the files into the folder; returns kinds of readers, each with its files' names and how they are read."""
    texts = dict(ENGINE_FILES) | {f"{name}.traffic": each.text(*ROWS) for name, each in FORMATS.items()}
    texts["windows.csv"] = "0,1.5,2.0,Gamma,0.25,3.0\n600,0,0,,0,0\n1200,0.5,3.0,Weibull,0.5,1.0\n"
    texts["lengths.csv"] = "num_prefill_tokens,num_decode_tokens\n10,5\n20,6\n"
    texts["benches.csv"] = BENCHES
    texts["vllm.table"] = write_vllm(TABLE, model="d", max_num_seqs=64, acceptance=(0.8, 0.6, 0.4))
    texts["sglang.table"] = write_sglang(TABLE, max_num_seqs=64)
    texts["tensorrt_llm.table"] = write_tensorrt_llm(TABLE, model="d", max_num_seqs=64)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    forward = ForwardCost(floor_s=0.03, token_s=1e-4, context_s=1e-7)
    StepCosts(target=forward, draft=forward).write(folder / "step_costs.json")
    for name, marginal in (("acceptance.json", (0.8, 0.6, 0.5)), ("mean_alone.json", ())):
        AcceptanceRecord(source="s", draft_length=3, mean_acceptance_length=2.9, marginal=marginal).write(folder / name)
    dialects = {"vllm": read_vllm, "sglang": read_sglang, "tensorrt_llm": read_tensorrt_llm}
    return {
        "engine files": dict.fromkeys(ENGINE_FILES, lambda path: read_engine_files([path])),
        "traffic": {f"{name}.traffic": _traffic for name in FORMATS}
        | {"windows.csv": read_windows, "lengths.csv": read_lengths},
        "server table": {"benches.csv": read_server_bench},
        "advice": {"step_costs.json": costs_from, "acceptance.json": _acceptance, "mean_alone.json": _acceptance},
        "dialects": {f"{name}.table": _text_of(read) for name, read in dialects.items()},
    }


def _traffic(path: Path) -> object:
    return read_measured(path) if holds_measured(path) else [read_traffic(path), read_lengths(path, sort=True)]


def _acceptance(path: Path) -> object:
    acceptance, record = acceptance_and_record(str(path), "--per-position")
    return [acceptance, None if record is None or record.marginal else record.bounds()]


def _text_of(read: Callable[[str], LengthTable]) -> Read:
    def read_file(path: Path) -> object:
        return read(path.read_bytes().decode("utf-8", "replace"))

    return read_file

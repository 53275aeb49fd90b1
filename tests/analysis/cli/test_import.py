"""`specbranch import` as a user meets it: from files of an engine to what a plan reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.analysis.command import call
from tests.traces.importers.engines.engine_files import REPORT, SERVER_LOG, SGLANG_RUN, VLLM_RUN, VLLM_SPEC, page, write
from traces.importers.engines.records import read_acceptance
from traces.importers.server_bench import read_server_bench


def test_results_and_a_log_become_a_folder_that_a_plan_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, log, out = write(tmp_path / "runs.jsonl", VLLM_RUN, VLLM_SPEC), tmp_path / "log.txt", tmp_path / "out"
    log.write_text(SERVER_LOG)
    assert call("import", str(runs), str(log), "--draft", "small", "--output-dir", str(out)) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "2 benchmarks; 2.24 tokens a step with K = 2 (0.73, 0.52)."
    assert max(map(len, told.splitlines()[:-2])) <= 80
    assert "cannot be known from it" in told
    assert "the memory:" not in told  # the log has it
    plain, drafted = read_server_bench(out / "benches.csv")
    assert (plain.kv_tokens, drafted.kv_tokens, drafted.draft) == (32528, 32528, "small")
    assert read_acceptance(out / "acceptance.json").draft_length == 2
    assert [file["num_benchmarks"] for file in json.loads((out / "import.json").read_text())["files"]] == [2, 0]
    advise = ("advise", "--per-position", str(out / "acceptance.json"), "--target-ms", "34", "--draft-ms", "3")
    assert call(*advise) == 0
    assert capsys.readouterr().out.startswith("K = 2: ")


def test_two_metrics_pages_give_an_acceptance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, out = tmp_path / "1.txt", tmp_path / "2.txt", tmp_path / "out"
    before.write_text(page(100, (100, 100)))
    after.write_text(page(1100, (825, 615)))
    assert call("import", str(before), str(after), "--output-dir", str(out)) == 0
    assert capsys.readouterr().out.startswith("No benchmark; 2.24 tokens a step with K = 2 (0.72, 0.52).")
    assert read_acceptance(out / "acceptance.json").marginal == pytest.approx((0.725, 0.515))
    assert not (out / "benches.csv").exists()


def test_a_mean_alone_is_bounded_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write(tmp_path / "run.jsonl", SGLANG_RUN), tmp_path / "out"
    assert call("import", str(run), "--output-dir", str(out)) == 0
    assert "unknown by position" in capsys.readouterr().out
    advise = ("advise", "--per-position", str(out / "acceptance.json"), "--target-ms", "34", "--draft-ms", "9")
    assert call(*advise) == 0
    captured = capsys.readouterr()
    assert "A mean length leaves the best K open: it may be 1 to 3" in captured.out
    assert captured.err.startswith("warning: ")


def test_a_given_memory_does_not_replace_what_a_log_says(tmp_path: Path) -> None:
    log, run = tmp_path / "log.txt", write(tmp_path / "run.json", VLLM_RUN)
    log.write_text(REPORT)
    assert call("import", str(log), str(run), "--kv-tokens", "5000", "--output-dir", str(tmp_path / "out")) == 0
    assert [bench.kv_tokens for bench in read_server_bench(tmp_path / "out" / "benches.csv")] == [69232, 5000]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("f", "nothing of an engine", "begins no format that we know"),
        ("f", json.dumps(VLLM_SPEC)[:100], "line 1 is not JSON"),
        ("f", "INFO GPU KV cache size: 100 tokens\n", "neither a benchmark nor an acceptance"),
        ("f", json.dumps(VLLM_RUN | {"mean_tpot_ms": 0.0}), "line 1: mean_tpot_ms"),
        ("nowhere/f", None, "cannot read"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    name: str, content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert call("import", str(path), "--output-dir", str(tmp_path / "out")) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert told in errors[0]

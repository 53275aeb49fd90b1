"""Files of engines: read as what they mean, whatever unit and convention, and refused in one line where they are damaged."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.traces.importers.engines.engine_files import (
    REPORT,
    SERVER_LOG,
    SGLANG_RUN,
    VLLM_RUN,
    VLLM_SPEC,
    aiperf,
    guidellm,
    page,
    response,
    write,
)
from traces.importers.base import ForeignTraceError
from traces.importers.engines.catalog import read_engine_files
from traces.importers.engines.records import AcceptanceRecord, EngineFile, Served, pooled, read_acceptance
from traces.importers.server_bench import ServerBench, bench_of, read_server_bench, write_server_bench


def read_one(path: Path, served: Served | None = None) -> EngineFile:
    (file,) = read_engine_files([path], served)
    return file


def benches(file: EngineFile) -> list[ServerBench]:
    return [bench_of(f"{file.path}, line 1", row) for row in file.rows]


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_a_result_of_vllm_is_a_row(tmp_path: Path, indent: int | None) -> None:
    """Percent and fractions, an infinite rate as text, ITL by step left alone."""
    file = read_one(write(tmp_path / "run.json", VLLM_SPEC, indent=indent))
    (bench,) = benches(file)
    assert (bench.draft_length, bench.max_concurrency, bench.num_requests) == (2, 4, 50)
    assert math.isinf(bench.arrivals_per_s)
    assert bench.mean_tpot_s == pytest.approx(0.019)
    assert bench.acceptance is not None
    assert bench.acceptance.marginal(2) == pytest.approx((0.725, 0.515))
    assert file.acceptance[0].num_drafts == 4450
    assert any("ITL" in sentence for sentence in file.unknown)
    assert any("memory" in sentence for sentence in file.unknown)


def test_lines_of_results_with_and_without_speculation(tmp_path: Path) -> None:
    path = write(
        tmp_path / "runs.jsonl", VLLM_RUN, VLLM_SPEC, VLLM_RUN | {"max_concurrency": None, "request_rate": 2.5}
    )
    plain, drafted, open_loop = benches(read_one(path))
    assert (plain.draft, plain.draft_length, plain.acceptance) == ("", 0, None)
    assert drafted.draft == "draft"
    assert (open_loop.max_concurrency, open_loop.arrivals_per_s) == (50, 2.5)


def test_k_without_rates_is_draft_tokens_over_drafts_and_the_mean_only_bounds(tmp_path: Path) -> None:
    run = {key: value for key, value in VLLM_SPEC.items() if "per_position" not in key}
    file = read_one(write(tmp_path / "run.json", run))
    (record,) = file.acceptance
    assert (record.draft_length, record.marginal) == (2, ())
    low, high = record.bounds()
    assert (low.mean_acceptance_length(1), high.mean_acceptance_length(1)) == pytest.approx((1.62, 2.0))
    assert low.mean_acceptance_length(2) == high.mean_acceptance_length(2) == pytest.approx(2.24)
    assert record.acceptance().mean_acceptance_length(2) == pytest.approx(2.24)
    assert low.mean_acceptance_length(1) < record.acceptance().mean_acceptance_length(1) < 2
    assert any("only bounds" in sentence for sentence in file.unknown)
    with pytest.raises(ForeignTraceError, match="K varied"):
        read_one(write(tmp_path / "varied.json", run | {"spec_decode_draft_tokens": 7000}))


def test_a_result_of_sglang_takes_k_and_memory_from_its_server_info(tmp_path: Path) -> None:
    (bench,) = benches(read_one(write(tmp_path / "run.jsonl", SGLANG_RUN)))
    assert (bench.method, bench.draft, bench.draft_length, bench.kv_tokens) == ("eagle3", "org/draft", 3, 69000)
    assert bench.max_concurrency == 50  # null is no bound
    assert bench.mean_acceptance_length == pytest.approx(2.24)


def test_without_server_info_k_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", {key: value for key, value in SGLANG_RUN.items() if key != "server_info"})
    file = read_one(path)
    assert not file.rows
    assert any("--draft-length" in sentence for sentence in file.unknown)
    with pytest.raises(ValueError, match="give it with --draft-length"):
        file.acceptance[0].acceptance()
    (bench,) = benches(read_one(path, Served(draft_length=4)))
    assert bench.draft_length == 4
    (plain,) = benches(read_one(write(tmp_path / "plain.jsonl", SGLANG_RUN | {"accept_length": None})))
    assert plain.draft_length == 0


def test_a_report_in_a_log_is_the_same_row_as_its_json(tmp_path: Path) -> None:
    file = read_one(text(tmp_path / "log.txt", "noise\n" + REPORT + "noise: 3\n" + REPORT.partition("\n")[2]))
    first, second = benches(file)
    assert first == second
    (of_json,) = benches(read_one(write(tmp_path / "run.json", VLLM_SPEC)))
    assert (first.kv_tokens, first.arrivals_per_s) == (69232, 4.0)
    for name in (
        "mean_tpot_s",
        "median_ttft_s",
        "output_tokens",
        "duration_s",
        "draft_length",
        "p99_tpot_s",
        "acceptance",
    ):
        assert getattr(first, name) == pytest.approx(getattr(of_json, name)) or name == "acceptance"
    assert first.mean_acceptance_length == pytest.approx(of_json.mean_acceptance_length)


def test_a_server_log_gives_acceptance_weighted_by_drafts_and_the_memory_to_other_files(tmp_path: Path) -> None:
    log, run = text(tmp_path / "server.log", SERVER_LOG), write(tmp_path / "run.json", VLLM_SPEC)
    server, runs = read_engine_files([log, run])
    (record,) = server.acceptance
    assert record.marginal == pytest.approx((0.75, 0.55))
    assert record.num_drafts == 400
    assert benches(runs)[0].kv_tokens == 32528
    (packed,) = read_engine_files([_packed(tmp_path / "server.log.gz", SERVER_LOG)])
    assert packed.kv_tokens == 32528


def _packed(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()))
    return path


HISTOGRAM = """\
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 60
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.3"} 99
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 100
vllm:time_to_first_token_seconds_sum{engine="0"} 12.0
vllm:time_to_first_token_seconds_count{engine="0"} 100
"""


def test_two_pages_give_what_was_counted_between_them(tmp_path: Path) -> None:
    before = text(tmp_path / "before.txt", page(100, (100, 100)))
    after = text(tmp_path / "after.txt", page(1100, (825, 615), more=HISTOGRAM))
    (file,) = read_engine_files([before, after])
    (record,) = file.acceptance
    assert record.marginal == pytest.approx((0.725, 0.515))
    assert record.mean_acceptance_length == pytest.approx(2.24)
    assert file.format == "metrics of vLLM, two pages"
    assert "TTFT 120 ms in the mean, p99 300 ms" in file.understood
    alone = read_one(after)
    assert alone.acceptance[0].marginal == pytest.approx((0.75, 615 / 1100))
    assert any("counters began with the server" in sentence for sentence in alone.unknown)


def test_a_restart_between_two_pages_is_found(tmp_path: Path) -> None:
    early, late = text(tmp_path / "1.txt", page(1100, (825, 615))), text(tmp_path / "2.txt", page(100, (100, 100)))
    with pytest.raises(ForeignTraceError, match="started anew"):
        read_engine_files([early, late])
    start = "process_start_time_seconds {}\n"
    early = text(tmp_path / "1.txt", page(100, (80, 70), more=start.format(5.0)))
    late = text(tmp_path / "2.txt", page(1100, (825, 615), more=start.format(9.0)))
    with pytest.raises(ForeignTraceError, match="started anew"):
        read_engine_files([early, late])


def test_engines_of_one_server_are_added_up(tmp_path: Path) -> None:
    both = page(100, (90, 80)) + page(300, (180, 120), engine="1")
    (record,) = read_one(text(tmp_path / "page.txt", both)).acceptance
    assert record.marginal == pytest.approx((270 / 400, 200 / 400))


def test_gauges_of_sglang_say_a_mean_alone(tmp_path: Path) -> None:
    gauges = 'sglang:spec_accept_length{tp_rank="0"} 2.4\nsglang:num_running_reqs{tp_rank="0"} 3.0\n'
    file = read_one(text(tmp_path / "page.txt", gauges), Served(draft_length=3))
    (record,) = file.acceptance
    assert (record.mean_acceptance_length, record.draft_length, record.marginal) == (2.4, 3, ())
    assert "3 running requests at the scrape" in file.understood
    assert any("only bounds" in sentence for sentence in file.unknown)


def test_guidellm_mixes_seconds_and_milliseconds_and_its_tpot_is_the_inter_token_latency(tmp_path: Path) -> None:
    path = write(tmp_path / "benchmarks.json", guidellm(), indent=1)
    (bench,) = benches(read_one(path, Served(draft_length=3)))
    assert (bench.num_requests, bench.max_concurrency, bench.draft_length) == (3, 2, 3)
    assert (bench.duration_s, bench.mean_tpot_s, bench.median_ttft_s) == pytest.approx((8.0, 0.030, 0.5))
    assert bench.output_tokens_per_s == pytest.approx(303 / 8)
    assert bench.mean_acceptance_length == pytest.approx(2.0)
    assert not read_one(path).rows  # K is unknown
    sampled = guidellm(metrics={"request_totals": {"successful": 900}})
    with pytest.raises(ForeignTraceError, match="sample of 3 of 900"):
        read_one(write(path, sampled))


def test_requests_with_histograms_dense_and_sparse_give_marginal_rates(tmp_path: Path) -> None:
    """Of 20 steps 12 accept at least 1 and 2 tokens, 6 all 3."""
    sparse = {"0": 8, "2": 6, "3": 6}
    files = [
        write(tmp_path / "dense.jsonl", response([8, 0, 6, 6], 60)),
        write(tmp_path / "sparse.jsonl", response(sparse, 60), {"id": "2", "metrics": {"speculative_decoding": None}}),
        write(
            tmp_path / "aiperf.jsonl",
            aiperf({"0": 100}, 300, benchmark_phase="warmup"),
            aiperf(sparse, 58),  # the last step was cut
            aiperf({"0": 100}, 300, was_cancelled=True),
        ),
    ]
    for path in files:
        (record,) = read_one(path).acceptance
        assert record.marginal == pytest.approx((0.6, 0.6, 0.3))
        assert (record.draft_length, record.num_drafts) == (3, 20)
    assert any(sentence.startswith("2 requests") for sentence in read_one(files[2]).unknown)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        (json.dumps(response([8, 0, 6, 6], 30)), "K varied"),
        (json.dumps(response({"0": 8, "7": 6}, 42)), "K varied or is wrong"),
        (json.dumps(response([8, -1], 24)), "must hold whole numbers"),
        (json.dumps(response({"none": 8}, 24)), "count steps by accepted tokens"),
        (json.dumps(aiperf({"0": 8}, 24, was_cancelled=True)), "no request with an acceptance"),
        (json.dumps(response([8, 0, 6, 6], 60)) + "\n{", "line 2 is not JSON"),
        (json.dumps(VLLM_RUN | {"duration": math.inf}), "line 1: duration must be a number"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a":\n' + "[" * 100_000, "line 1 is not JSON"),
        ("a,b\n1,2\n", "line 1 begins no format"),
        ("\x00\x01\x02", "line 1 begins no format"),
        ('{"a": 1}\n', "line 1 begins no format"),
        ("[1, 2]\n", "line 1: a benchmark's result is a JSON object"),
        (json.dumps(VLLM_RUN)[:200], "line 1 is not JSON"),
        (json.dumps(VLLM_RUN) + "\n" + json.dumps(VLLM_SPEC)[:200], "line 2 is not JSON"),
        (json.dumps(VLLM_RUN, indent=1)[:200], "is not JSON"),
        (json.dumps(VLLM_RUN) + '\n{"a": 1}', "line 2 is not a result"),
        (json.dumps(VLLM_RUN | {"duration": None}), "line 1: duration is missing"),
        (json.dumps(VLLM_RUN | {"duration": "long"}), "line 1: duration must be a number"),
        (json.dumps(VLLM_RUN | {"completed": True}), "line 1: completed must be a number"),
        (json.dumps(VLLM_SPEC | {"spec_decode_per_position_acceptance_rates": [72.5, 51.5]}), "percent"),
        (json.dumps(VLLM_SPEC | {"spec_decode_per_position_acceptance_rates": [0.725, 0.71]}), "add up to"),
        (json.dumps(VLLM_SPEC | {"spec_decode_per_position_acceptance_rates": "high"}), "list of numbers"),
        (json.dumps(VLLM_SPEC | {"spec_decode_acceptance_length": 7.0}), "cannot be with K = 2"),
        (json.dumps(SGLANG_RUN | {"server_info": {"speculative_eagle_topk": 4}}), "no single K"),
        (REPORT[:700], "line 2: this report has no end"),
        (REPORT[:700] + "\n" + REPORT, "line 2: this report has no end before"),
        (REPORT.replace("19.00", "fast"), "line 19: Mean TPOT .ms. must be a number"),
        (REPORT.replace("Mean TPOT (ms)", "Mean tempo"), "lacks mean_tpot_ms"),
        (REPORT.replace("Position 0", "Position 1"), "out of order"),
        (page(100, (90, 80))[:-30] + "\n", "is not a sample"),
        (page(100, (90, 80)) + page(100, (90, 80)), "is there twice"),
        (page(100, (180, 80)), "260 accepted of 200 drafted"),
        (page(100, (180, 80)).replace("2.600000e+02", "100"), "never rise"),
        (page(100, (60, 80)), "never rise"),
        ("python_info:x 1\n", "neither of vLLM nor of SGLang"),
        (json.dumps({"benchmarks": []}), "at least one benchmark"),
        (json.dumps({"benchmarks": [{"requests": {"successful": []}}]}), "did any request end well"),
        (json.dumps(guidellm()).replace("104.0", "4.0"), "no later than it starts"),
    ],
)
def test_damaged_and_foreign_files_are_told_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    path = text(tmp_path / "file", content)
    with pytest.raises(ForeignTraceError, match=told) as refused:
        read_one(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_cut_of_every_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = (json.dumps(VLLM_SPEC), REPORT, SERVER_LOG, page(100, (90, 80), more=HISTOGRAM), json.dumps(guidellm()))
    for content in contents:
        for end in range(0, len(content), 23):
            path.write_text(content[:end])
            assert "\n" not in _refusal(path)


def _refusal(path: Path) -> str:
    """Why a file is refused; "" where it is read."""
    try:
        read_one(path)
    except ForeignTraceError as error:
        return str(error)
    return ""


def record(**changes: Any) -> AcceptanceRecord:
    values = {
        "source": "s",
        "draft_length": 2,
        "mean_acceptance_length": 2.2,
        "marginal": (0.7, 0.5),
        "num_drafts": 100.0,
    }
    return AcceptanceRecord(**values | changes)  # type: ignore[arg-type]  # of tests


def test_records_are_pooled_by_their_drafts_and_survive_a_file(tmp_path: Path) -> None:
    both = pooled([record(), record(marginal=(0.9, 0.8), mean_acceptance_length=2.7, num_drafts=300.0)])
    assert both is not None
    assert both.marginal == pytest.approx((0.85, 0.725))
    path = tmp_path / "acceptance.json"
    both.write(path)
    assert read_acceptance(path) == both
    longer = record(draft_length=3, marginal=(0.7, 0.5, 0.4), mean_acceptance_length=2.6)
    chosen = pooled([record(), longer, record(marginal=(), draft_length=5)])
    assert chosen is not None
    assert chosen.marginal == longer.marginal
    assert pooled([]) is None
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"acceptance\.json does not hold"):
        read_acceptance(path)


def test_rows_survive_the_table(tmp_path: Path) -> None:
    file = read_one(write(tmp_path / "runs.jsonl", VLLM_RUN, VLLM_SPEC))
    write_server_bench(tmp_path / "benches.csv", file.rows)
    read = read_server_bench(tmp_path / "benches.csv")
    assert [bench.mean_tpot_s for bench in read] == [bench.mean_tpot_s for bench in benches(file)]
    assert [bench.acceptance for bench in read] == [bench.acceptance for bench in benches(file)]

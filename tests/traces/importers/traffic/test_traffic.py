"""Every format of traffic becomes the same record, and a damaged file is refused with its line, whatever the format."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.importers.traffic.formats import FORMATS, ROWS, aiperf_line, json_line, measured_line, written
from traces.importers.base import ForeignTraceError
from traces.importers.traffic.catalog import read_lengths, read_measured, read_traffic
from traces.workload import Workload

every_format = pytest.mark.parametrize("name", FORMATS)


def columns(workload: Workload) -> list[tuple[float, int, int]]:
    return list(
        zip(workload.arrival_s.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    )


@every_format
def test_a_file_becomes_requests_that_count_from_the_first(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    read = read_traffic(written(tmp_path, format.text(*ROWS)))
    expected = [((ticks - 3) * format.unit_s, prompt, output) for ticks, prompt, output in ROWS]
    assert columns(read) == [pytest.approx(row, rel=1e-12) for row in expected]
    assert read.source.startswith("traffic (")
    assert read.max_concurrency is None
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(("\ufeff" + format.text(*ROWS) + "\n\n").encode()))  # blank lines at the end pass
    assert columns(read_traffic(packed)) == columns(read)
    lengths = read_lengths(packed)
    assert (lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist()) == ([700, 20, 1000, 5], [10, 1, 30, 40])


HOSTILE: dict[str, tuple[tuple[object, object, object], str]] = {
    "arrival not a number": (("soon", 10, 10), "soon"),
    "arrival negative": ((-1, 10, 10), "-1"),
    "arrival nan": ((float("nan"), 10, 10), r"(?i)nan"),
    "arrival infinite": ((float("inf"), 10, 10), r"(?i)inf"),
    "prompt not a number": ((5, "many", 10), "many"),
    "prompt negative": ((5, -7, 10), "must have 1 to .* tokens, but has -7"),
    "prompt zero": ((5, 0, 10), "must have 1 to .* tokens, but has 0"),
    "prompt not whole": ((5, 10.5, 10), r"10\.5"),
    "prompt nan": ((5, float("nan"), 10), r"(?i)nan"),
    "prompt absurd": ((5, 10**30, 10), "1000000"),
    "output not a number": ((5, 10, "many"), "many"),
    "output negative": ((5, 10, -7), "must have 1 to .* tokens, but has -7"),
    "output not whole": ((5, 10, 10.5), r"10\.5"),
    "output infinite": ((5, 10, float("inf")), r"(?i)inf"),
}


@every_format
@pytest.mark.parametrize("damage", HOSTILE)
def test_a_damaged_row_is_refused_with_file_and_line(name: str, damage: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    row, message = HOSTILE[damage]
    path = written(tmp_path, format.text(*ROWS[:2], row, *ROWS[2:]))
    with pytest.raises(ForeignTraceError, match=message) as caught:
        read_traffic(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line {format.first + 2}: ")
    assert "\n" not in said


@every_format
def test_requests_out_of_order_are_refused_or_sorted_when_asked(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    path = written(tmp_path, format.text(ROWS[1], ROWS[3], ROWS[2], ROWS[0]))
    if not format.always_sorts:
        with pytest.raises(
            ForeignTraceError, match=rf"line {format.first + 2}: .* before the one above it .* \(sort=True\)"
        ):
            read_traffic(path)
    in_order = columns(read_traffic(written(tmp_path, format.text(*ROWS), "ordered")))
    assert columns(read_traffic(path, sort=True)) == [pytest.approx(row, abs=1e-12) for row in in_order]


@every_format
def test_a_request_without_output_is_refused_or_said(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    path = written(tmp_path, format.text(ROWS[0], (3, 10, 0), *ROWS[1:]))
    if format.skips_empty:
        read = read_traffic(path)
        assert columns(read) == columns(read_traffic(written(tmp_path, format.text(*ROWS), "clean")))
        assert "1 requests without output tokens failed and are left out" in read.source
    else:
        with pytest.raises(ForeignTraceError, match=rf"line {format.first + 1}: an output must have 1 to"):
            read_traffic(path)


@every_format
@pytest.mark.parametrize("ending", ["cut", "foreign", "short"])
def test_a_line_that_is_no_row_is_refused(name: str, ending: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    last = {"cut": format.line(*ROWS[3])[: len(format.line(*ROWS[3])) // 4], "foreign": "\x00\xff?!", "short": "1"}[
        ending
    ]
    path = written(tmp_path, format.text(*ROWS[:3]) + last)
    with pytest.raises(ForeignTraceError, match=rf"^{re.escape(str(path))}, line {format.first + 3}: "):
        read_traffic(path)


@every_format
def test_a_blank_line_amid_requests_is_refused(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    text = format.text(*ROWS[:2]) + "\n \n" + FORMATS[name].text(*ROWS[2:]).removeprefix(f"{format.header}\n")
    with pytest.raises(
        ForeignTraceError, match=rf"line {format.first + 2}: the line is blank, but more follow; remove"
    ):
        read_traffic(written(tmp_path, text))


@every_format
def test_a_cut_archive_is_refused(name: str, tmp_path: Path) -> None:
    whole = gzip.compress(FORMATS[name].text(*(ROWS[0],) * 3000).encode())
    for path, data in ((tmp_path / "cut.gz", whole[: len(whole) - 20]), (tmp_path / "plain.gz", b"TIMESTAMP,")):
        path.write_bytes(data)
        with pytest.raises(
            ForeignTraceError, match=rf"cannot read {re.escape(str(path))}: .*; check the path, or copy"
        ):
            read_traffic(path)


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.header])
def test_a_file_of_column_names_only_holds_no_request(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{FORMATS[name].header}\n")
    with pytest.raises(ForeignTraceError, match="holds no request; give a file with at least one"):
        read_traffic(path)


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.header])
def test_columns_may_stand_in_any_order_beside_others(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    lines = [line.split(",") for line in format.text(*ROWS).splitlines()]
    turned = "".join(",".join([*reversed(line), '"more"']) + "\n" for line in lines)
    assert columns(read_traffic(written(tmp_path, turned, "turned"))) == columns(
        read_traffic(written(tmp_path, format.text(*ROWS)))
    )


@pytest.mark.parametrize(
    "text",
    [
        "arrival,prompt,output\n1,2,3\n",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n",  # a column is missing
        "model,hardware,prompt_size,batch_size,token_size\nllama,a100,1,1,1\n",
        '{"time": 1}\n',
        "\x00\x01\x02",
    ],
)
def test_other_files_are_refused_with_the_formats_that_are_known(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ForeignTraceError, match=r"is not traffic in a known format; these are: Azure .* ServeGen"):
        read_traffic(path)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignTraceError, match="is empty; give a file with one request a line"):
        read_traffic(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignTraceError, match=r"cannot read .*: No such file or directory"):
        read_traffic(tmp_path / "absent.csv")


def test_options_of_timed_traces_are_for_timed_traces(tmp_path: Path) -> None:
    path = written(tmp_path, FORMATS["vidur"].text(*ROWS))
    with pytest.raises(ValueError, match="timestamp_unit_s is for timed traces only, but the file is a Vidur trace"):
        read_traffic(path, timestamp_unit_s=0.001)
    path = written(tmp_path, FORMATS["timed"].text(*ROWS))
    for unit in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timestamp_unit_s must be above 0"):
            read_traffic(path, timestamp_unit_s=unit)
    assert read_traffic(path, timestamp_unit_s=0.5).arrival_s.tolist() == [0.0, 0.5, 0.5, 3.0]


def test_blocks_of_512_tokens_are_mooncakes_and_kept(tmp_path: Path) -> None:
    lines = (
        {"timestamp": 1000, "input_length": 513, "output_length": 1, "hash_ids": [7, 2**63]},
        {"timestamp": 2500, "input_length": 512, "output_length": 2, "hash_ids": [7]},
    )
    path = written(tmp_path, "".join(json_line(**line) + "\n" for line in lines))
    read = read_traffic(path)
    assert read.prefix_blocks == ((7, 2**63), (7,))
    assert (read.prefix_block_tokens, read.arrival_s.tolist()) == (512, [0.0, 1.5])
    assert "a timestamp counts 0.001 s; blocks of 512 tokens" in read.source


def test_blocks_of_16_tokens_count_in_seconds_and_follow_a_sort(tmp_path: Path) -> None:
    lines = (
        {"timestamp": 12.5, "input_length": 40, "output_length": 7, "hash_ids": [1, 2, 3]},
        {"timestamp": 12.0, "input_length": 47, "output_length": 8, "hash_ids": [1, 4]},  # full blocks only
    )
    path = written(tmp_path, "".join(json_line(**line) + "\n" for line in lines))
    read = read_traffic(path, sort=True)
    assert read.prefix_blocks == ((1, 4), (1, 2, 3))
    assert (read.prefix_block_tokens, read.arrival_s.tolist()) == (16, [0.0, 0.5])
    with pytest.raises(ForeignTraceError, match="line 1: 3 hash_ids cannot cover 40 tokens in blocks of 32"):
        read_traffic(path, sort=True, prefix_block_tokens=32)


def test_blocks_that_fit_no_known_size_need_it_given(tmp_path: Path) -> None:
    line = json_line(timestamp=0, input_length=100, output_length=7, hash_ids=[1, 2])
    path = written(tmp_path, line)
    with pytest.raises(
        ForeignTraceError,
        match=r"line 1: 2 hash_ids cannot cover 100 tokens in blocks of 512 or 16.*prefix_block_tokens",
    ):
        read_traffic(path)
    assert read_traffic(path, prefix_block_tokens=64).prefix_blocks == ((1, 2),)


def test_lines_of_two_block_sizes_are_refused(tmp_path: Path) -> None:
    lines = (
        json_line(timestamp=0, input_length=513, output_length=7, hash_ids=[1, 2]),
        json_line(timestamp=1, input_length=32, output_length=7, hash_ids=[1, 2]),
    )
    with pytest.raises(
        ForeignTraceError, match="line 2: 2 hash_ids cannot cover 32 tokens in blocks of 512, which the lines"
    ):
        read_traffic(written(tmp_path, "\n".join(lines)))


def test_aiperf_leaves_out_what_was_no_request_and_sorts_by_start(tmp_path: Path) -> None:
    start = 1759813207532900363
    lines = (
        aiperf_line(start + 2_000_000_000, 30, 3),
        aiperf_line(start, 10, 1),
        aiperf_line(start - 5, 99, 9, benchmark_phase="warmup"),
        aiperf_line(start + 5, 99, 9, was_cancelled=True),
        json_line(metadata={"request_start_ns": start + 6}, metrics={}, error={"code": 500, "message": "no"}),
        aiperf_line(start + 500_000_001, 20, 2, benchmark_phase=None),
    )
    read = read_traffic(written(tmp_path, "\n".join(lines)))
    assert columns(read) == [
        (0.0, 10, 1),
        (pytest.approx(0.500000001, rel=1e-12), 20, 2),
        (2.0, 30, 3),
    ]  # to the nanosecond
    assert "3 warm-up, cancelled or failed requests are left out" in read.source
    path = written(tmp_path, json_line(metadata={"request_start_ns": start}, metrics={}, error=None))
    with pytest.raises(
        ForeignTraceError, match="line 1: metrics lacks input_sequence_length or output_sequence_length"
    ):
        read_traffic(path)


def test_azure_reads_time_zones_and_microseconds(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,1,1\n2024-05-10 02:00:00.009931+02:00,2,2\n2024-05-10 00:00:01,3,3\n"
    )
    assert read_traffic(written(tmp_path, text)).arrival_s.tolist() == [0.0, 1e-6, 0.99007]


def test_measured_times_share_the_workloads_clock(tmp_path: Path) -> None:
    lines = (measured_line(100.0, 10, 5, after=0.75), measured_line(101.0, 20, 1, after=0.5))
    measured = read_measured(written(tmp_path, "\n".join(lines)))
    assert measured.arrival_s.tolist() == [0.0, 1.0]
    assert measured.queued_s.tolist() == [0.25, 1.0]  # the least delay, the second request's, becomes 0
    assert measured.scheduled_s.tolist() == [1.25, 2.0]
    assert measured.ttft_s.tolist() == [2.25, 2.0]
    assert measured.last_token_s.tolist() == [4.25, 5.0]
    assert measured.tpot_s.tolist() == [0.5, pytest.approx(np.nan, nan_ok=True)]
    turned = read_measured(written(tmp_path, "\n".join(reversed(lines)), "turned"), sort=True)
    assert turned.queued_s.tolist() == measured.queued_s.tolist()


@pytest.mark.parametrize("field", ["scheduled_ts", "first_token_ts", "last_token_ts"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_measured_times_that_fall_are_refused(field: str, value: float, tmp_path: Path) -> None:
    line = json.loads(measured_line(100.0, 10, 5)) | {field: value}
    path = written(tmp_path, measured_line(99.0, 10, 5) + "\n" + json.dumps(line))
    with pytest.raises(ForeignTraceError, match=r"line 2: queued_ts, .* must be numbers and must not fall"):
        read_measured(path)
    with pytest.raises(ForeignTraceError, match="does not hold measured vLLM requests"):
        read_measured(written(tmp_path, FORMATS["vidur"].text(*ROWS), "other"))


@given(
    rows=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_every_format_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], name: str
) -> None:
    format = FORMATS[name]
    path = written(tmp_path_factory.mktemp("traffic"), format.text(*rows))
    read = read_traffic(path, sort=True)
    ordered = sorted(rows, key=lambda row: row[0])
    assert columns(read) == [
        pytest.approx(((ticks - ordered[0][0]) * format.unit_s, prompt, output), rel=1e-9)
        for ticks, prompt, output in ordered
    ]

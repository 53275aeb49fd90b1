"""Tables of server benchmarks: read as they are, and refused with file and line where they cannot be."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from traces.importers.base import ForeignTraceError
from traces.importers.server_bench import read_server_bench

HEADER = (
    "dataset,method,draft,k,kv_tokens,n_requests,max_concurrency,request_rate,duration_s,input_tokens,output_tokens,"
    "output_tok_s,mean_tpot_ms,median_ttft_ms,acceptance_length,per_position_pct,anything"
)
PLAIN = "chat,none,,0,69232,50.0,1,1.0,341.32,7227.0,10000.0,29.3,33.97,50.45,,,x"
DRAFTED = "chat,draft_model,Small,2,32528,50,4,4.0,51.58,7227,10000,193.88,19.27,89.02,2.24,72.5;51.5,x"
MEASURED = Path(__file__).parents[3] / ".." / "shared" / "data" / "serving"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def test_rows_carry_seconds_counts_and_acceptance(table: Path) -> None:
    table.write_text("\n".join([HEADER, PLAIN, "", DRAFTED]) + "\r\n")
    plain, drafted = read_server_bench(table)
    assert (plain.draft, plain.draft_length, plain.kv_tokens, plain.acceptance) == ("", 0, 69232, None)
    assert plain.mean_tpot_s == pytest.approx(0.03397)
    assert plain.median_ttft_s == pytest.approx(0.05045)
    assert drafted.acceptance is not None
    assert drafted.acceptance.marginal(2) == pytest.approx((0.725, 0.515))
    assert drafted.mean_acceptance_length == pytest.approx(2.24)
    assert (plain.line, drafted.line) == (2, 4)


def test_packed_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress("\n".join([HEADER, PLAIN]).encode()))
    assert len(read_server_bench(path)) == 1


@pytest.mark.parametrize("length", ["2.24", ""])
def test_fractions_and_percent_are_told_apart(table: Path, length: str) -> None:
    row = DRAFTED.replace("2.24", length).replace("72.5;51.5", "0.725;0.515")
    table.write_text(f"{HEADER}\n{row}\n")
    (read,) = read_server_bench(table)
    assert read.acceptance is not None
    assert read.acceptance.marginal(2) == pytest.approx((0.725, 0.515))


def test_low_percentages_are_not_taken_for_fractions_where_the_acceptance_length_speaks(table: Path) -> None:
    row = DRAFTED.replace("2.24", "1.014").replace("72.5;51.5", "0.9;0.5")
    table.write_text(f"{HEADER}\n{row}\n")
    (read,) = read_server_bench(table)
    assert read.mean_acceptance_length == pytest.approx(1.014)


def test_an_acceptance_length_alone_is_enough(table: Path) -> None:
    table.write_text(f"{HEADER}\n{DRAFTED.replace('72.5;51.5', '')}\n")
    (read,) = read_server_bench(table)
    assert read.mean_acceptance_length == pytest.approx(2.24)


def test_a_method_without_a_draft_model_is_its_own_draft(table: Path) -> None:
    table.write_text("\n".join([HEADER, PLAIN, DRAFTED.replace("draft_model,Small", "ngram,")]))
    assert [row.draft for row in read_server_bench(table)] == ["", "ngram"]


def test_a_draft_of_two_methods_is_two_drafts(table: Path) -> None:
    table.write_text("\n".join([HEADER, PLAIN, DRAFTED, DRAFTED.replace("draft_model", "parallel")]))
    assert [row.draft for row in read_server_bench(table)] == ["", "draft_model Small", "parallel Small"]


def test_steps_without_a_draft_lower_the_acceptance(table: Path) -> None:
    """10000 tokens of 50 requests; 2000 drafts of 2.24 tokens leave 9950 - 4480 steps of one token."""
    header = HEADER.replace("anything", "drafts")
    table.write_text("\n".join([header, DRAFTED.removesuffix("x") + "2000", DRAFTED.removesuffix("x") + "4450"]))
    rare, always = read_server_bench(table)
    assert rare.mean_acceptance_length == pytest.approx(9950 / (2000 + 9950 - 4480), rel=1e-6)
    assert always.mean_acceptance_length == pytest.approx(2.24)


def test_a_rate_may_be_infinite_and_a_memory_unknown(table: Path) -> None:
    table.write_text(f"{HEADER}\n{PLAIN.replace(',1.0,', ',inf,').replace('69232', '')}\n")
    (read,) = read_server_bench(table)
    assert math.isinf(read.arrivals_per_s)
    assert read.kv_tokens is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (PLAIN.replace("33.97", "fast"), "mean_tpot_ms"),
        (PLAIN.replace("33.97", "-1"), "mean_tpot_ms"),
        (PLAIN.replace("33.97", "nan"), "mean_tpot_ms"),
        (PLAIN.replace("341.32", ""), "duration_s"),
        (PLAIN.replace("50.0", "0"), "n_requests"),
        (PLAIN.replace("50.0", "50.5"), "n_requests"),
        (PLAIN + ",more", "18 cells under 17 columns"),
        (PLAIN.replace("10000.0", "50"), "two tokens"),
        (DRAFTED.replace("72.5;51.5", "72.5"), "1 positions, but k is 2"),
        (DRAFTED.replace("72.5;51.5", "51.5;72.5"), "never rise"),
        (DRAFTED.replace("72.5;51.5", "172.5;51.5"), "never rise"),
        (DRAFTED.replace("72.5;51.5", "72.5;much"), "joined by ';'"),
        (DRAFTED.replace("2.24,72.5;51.5", ","), "neither"),
        (DRAFTED.replace("2.24,72.5;51.5", "3.5,"), "exceeds k"),
    ],
)
def test_malformed_rows_are_told_by_file_and_line(table: Path, row: str, told: str) -> None:
    table.write_text("\n".join([HEADER, PLAIN, row]))
    with pytest.raises(ForeignTraceError, match=told) as refused:
        read_server_bench(table)
    assert str(refused.value).startswith(f"{table}, line 3")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n\n", HEADER, "a,b\n1,2\n", "\xff\xfe"])
def test_what_is_no_such_table_is_refused(table: Path, text: str) -> None:
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(ForeignTraceError, match=r"table\.csv"):
        read_server_bench(table)


def test_a_missing_table_is_refused(table: Path) -> None:
    with pytest.raises(ForeignTraceError, match="cannot read"):
        read_server_bench(table)


def test_the_measured_table_is_whole() -> None:
    path = MEASURED / "vllm_qwen3_32b_h100_94gb_instructcoder.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows = read_server_bench(path)
    assert len(rows) == 171
    assert {row.draft_length for row in rows} == set(range(7))
    for row in rows:
        assert row.output_tokens / row.duration_s == pytest.approx(row.output_tokens_per_s, rel=0.001)
        if row.draft_length:
            assert 1.5 < row.mean_acceptance_length < row.draft_length + 1

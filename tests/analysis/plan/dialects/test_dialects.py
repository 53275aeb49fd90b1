"""Tables in three dialects: they survive writing and reading, obey each engine's rules, and damage is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.plan.dialects.sglang import read_sglang, write_sglang
from analysis.plan.dialects.tensorrt_llm import read_tensorrt_llm, write_tensorrt_llm
from analysis.plan.dialects.vllm import read_vllm, write_vllm
from sim.serving.rounds.length_rules import Band, LengthTable

MAX = 48


def vllm(table: LengthTable) -> str:
    return write_vllm(table, model="org/draft", max_num_seqs=MAX)


def sglang(table: LengthTable) -> str:
    return write_sglang(table, max_num_seqs=MAX)


def tensorrt_llm(table: LengthTable) -> str:
    return write_tensorrt_llm(table, model="org/draft", max_num_seqs=MAX)


DIALECTS = {
    "vllm": (vllm, read_vllm),
    "sglang": (sglang, read_sglang),
    "tensorrt_llm": (tensorrt_llm, read_tensorrt_llm),
}
Write, Read = Callable[[LengthTable], str], Callable[[str], LengthTable]


@st.composite
def tables(draw: st.DrawFn) -> LengthTable:
    """Bands of any width, some of them beyond the largest batch; the first one has the longest draft, as TensorRT-LLM asks."""
    widths = draw(st.lists(st.integers(1, 20), min_size=0, max_size=6))
    lengths = draw(st.lists(st.integers(0, 7), min_size=len(widths) + 1, max_size=len(widths) + 1))
    lengths[0] = max(1, *lengths)
    rows: list[tuple[int, int | None, int]] = []
    first = 1
    for width, length in zip(widths, lengths, strict=False):
        rows.append((first, first + width - 1, length))
        first += width
    return LengthTable.of(*rows, (first, None, lengths[-1]))


@pytest.mark.parametrize("dialect", DIALECTS)
@given(table=tables())
def test_tables_survive_writing_and_reading(dialect: str, table: LengthTable) -> None:
    write, read = DIALECTS[dialect]
    text = write(table)
    back = read(text)
    for batch in range(1, MAX + 1):
        assert back.length_at(batch, 0) == table.length_at(batch, 0), f"batch {batch}: {text}"
    assert write(back) == text


@given(table=tables())
def test_each_engine_accepts_what_is_written(table: LengthTable) -> None:
    """The rules as the engines' own validators have them, spelt out here once more."""
    config = json.loads(vllm(table))
    ranges = config.get("num_speculative_tokens_per_batch_size", [[1, MAX, config["num_speculative_tokens"]]])
    assert ranges[0][0] == 1
    assert ranges[-1][1] == MAX
    assert all(1 <= first <= last and 0 <= k <= config["num_speculative_tokens"] for first, last, k in ranges)
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ranges))
    entries = {key: value for key, value in json.loads(sglang(table)).items() if key.isdigit()}
    assert list(entries) == sorted(entries, key=int)
    assert all(
        set(entry) == {"candidate_steps", "up_hysteresis", "down_hysteresis", "ceiling_coeff"}
        for entry in entries.values()
    )
    options = json.loads(tensorrt_llm(table))
    schedule = {int(key): value for key, value in options["draft_len_schedule"].items()}
    assert schedule[min(schedule)] == options["max_draft_len"] == max(schedule.values())
    assert max(schedule) <= MAX


def test_the_documented_examples_mean_what_the_engines_say() -> None:
    table = read_vllm('{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[1,64,5],[80,128,1]]}')
    assert [table.length_at(batch, 0) for batch in (1, 64, 79, 80, 4000)] == [
        3,
        3,
        3,
        1,
        1,
    ]  # cut, gap and tail carried
    table = read_tensorrt_llm('{"max_draft_len": 4, "draft_len_schedule": {"32": 1, "4": 4, "8": 2}}')
    assert [table.length_at(batch, 0) for batch in (1, 4, 5, 8, 9, 32, 33)] == [4, 4, 2, 2, 1, 1, 0]
    table = read_sglang('{"ema_alpha": 0.2, "8": {"candidate_steps": [1, 1]}, "32": {"candidate_steps": [0]}}')
    assert [table.length_at(batch, 0) for batch in (1, 8, 31, 32)] == [1, 1, 1, 0]
    assert read_tensorrt_llm('{"max_draft_len": 4, "max_concurrency": 8}') == LengthTable.of((1, 8, 4), (9, None, 0))
    assert read_vllm('{"num_speculative_tokens": 2}') == LengthTable.of((1, None, 2))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("table", "told"),
    [
        (LengthTable.of((1, None, 0)), "never speculates"),
        (LengthTable.of((1, 8, 2), (9, None, 0), hysteresis=2), "hysteresis"),
        (LengthTable((Band(1, None, 3, 0, 100), Band(1, None, 1, 100, None))), "context"),
    ],
)
def test_what_no_table_can_say_is_refused(dialect: str, table: LengthTable, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DIALECTS[dialect][0](table)


def test_what_one_engine_cannot_say_is_refused_by_it() -> None:
    rising = LengthTable.of((1, 8, 1), (9, None, 3))
    with pytest.raises(ValueError, match="longest draft at the smallest"):
        tensorrt_llm(rising)
    assert read_vllm(vllm(rising)) == rising
    with pytest.raises(ValueError, match="data parallel 2"):
        write_vllm(rising, model="m", max_num_seqs=MAX, data_parallel_size=2)
    assert "per_batch_size" not in write_vllm(
        LengthTable.of((1, None, 2)), model="m", max_num_seqs=MAX, data_parallel_size=2
    )
    with pytest.raises(ValueError, match="no method 'medusa'"):
        write_tensorrt_llm(LengthTable.of((1, None, 2)), model="m", method="medusa", max_num_seqs=MAX)


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (read_vllm, "{", "not JSON at line 1"),
        (read_vllm, "[]", "must be a JSON object"),
        (read_vllm, "{}", "num_speculative_tokens"),
        (read_vllm, '{"num_speculative_tokens": true}', "num_speculative_tokens"),
        (read_vllm, '{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": []}', "must be a list"),
        (read_vllm, '{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[2,4,3]]}', "begin at a batch"),
        (read_vllm, '{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[1,0,3]]}', "last batch size"),
        (read_vllm, '{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[1,4]]}', "each entry"),
        (
            read_vllm,
            '{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[1,4,3],[4,9,1]]}',
            "without overlap",
        ),
        (read_sglang, '{"ema_alpha": 0.2}', "needs an entry"),
        (read_sglang, '{"1": [3]}', "candidate_steps must be"),
        (read_sglang, '{"1": {"candidate_steps": [1, 3]}}', "several candidate steps"),
        (read_sglang, '{"1": {"candidate_steps": [-1]}}', "at least 0"),
        (read_sglang, '{"1": {"candidate_steps": [1]}, "01": {"candidate_steps": [2]}}', "two entries"),
        (read_tensorrt_llm, '{"draft_len_schedule": {"1": 1}}', "max_draft_len"),
        (read_tensorrt_llm, '{"max_draft_len": 3, "draft_len_schedule": {"4": 2, "8": 3}}', "must begin with"),
        (read_tensorrt_llm, '{"max_draft_len": 3, "draft_len_schedule": {"0": 3}}', "at least 1"),
        (read_tensorrt_llm, '{"max_draft_len": 3, "draft_len_schedule": {"a": 3}}', "not a batch size"),
        (read_tensorrt_llm, '{"max_draft_len": 3, "max_concurrency": 2, "draft_len_schedule": {"4": 3}}', "exclude"),
    ],
)  # fmt: skip
def test_damaged_configurations_are_told_in_one_line(read: Read, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        read(text)
    assert "\n" not in str(refused.value)


def test_a_replay_accepts_by_given_rates() -> None:
    table = LengthTable.of((1, 8, 2), (9, None, 0))
    config = json.loads(write_vllm(table, model="m", max_num_seqs=MAX, acceptance=(0.8, 0.64)))
    assert (config["rejection_sample_method"], config["synthetic_acceptance_rates"]) == ("synthetic", [0.8, 0.64])
    for rates, told in (((0.8,), "1 rates"), ((0.6, 0.7), "never rise"), ((1.2, 0.7), "never rise")):
        with pytest.raises(ValueError, match=told):
            write_vllm(table, model="m", max_num_seqs=MAX, acceptance=rates)

"""A workload is three plain arrays that hold together, and its slices, scalings and filters are what they say."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.workload import Workload


def workload(**changes: Any) -> Workload:
    given = {
        "arrival_s": np.array([0.0, 1.0, 1.0, 4.0]),
        "prompt_tokens": np.array([10, 20, 30, 40]),
        "output_tokens": np.array([1, 2, 3, 4]),
    }
    return Workload(**(given | changes))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    num = draw(st.integers(1, 30))
    counts = st.lists(st.integers(1, 1000), min_size=num, max_size=num)
    gaps = draw(st.lists(st.integers(0, 50), min_size=num, max_size=num))  # quarters of a second are exact in binary
    prompts = draw(counts)
    return Workload(
        arrival_s=np.cumsum(gaps) / 4,
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(draw(counts)),
        prefix_blocks=tuple((place,) * -(-prompt // 16) for place, prompt in enumerate(prompts)),
        prefix_block_tokens=16,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": [0.0, -1.0, 1.0, 2.0]}, "arrival_s must be at least 0 and finite, but request 1 has -1.0"),
        ({"arrival_s": [0.0, math.nan, 1.0, 2.0]}, "request 1 has nan"),
        ({"arrival_s": [0.0, 1.0, 2.0, math.inf]}, "request 3 has inf"),
        ({"arrival_s": [0.0, 2.0, 1.0, 3.0]}, "arrival_s must never fall, but request 2 has 1.0 after 2.0; sort"),
        ({"arrival_s": [0.0, 2.0, 3.0]}, "equally long, but have 3, 4 and 4 entries"),
        ({"arrival_s": []}, r"of at least one, but has shape (0,)"),
        ({"arrival_s": np.zeros((2, 2))}, "has shape (2, 2)"),
        ({"prompt_tokens": [10, 0, 30, 40]}, "prompt_tokens must be at least 1, but request 1 has 0"),
        ({"output_tokens": [1, 2, -3, 4]}, "output_tokens must be at least 1, but request 2 has -3"),
        ({"output_tokens": [1.0, 2.0, 3.0, 4.0]}, "output_tokens must hold one whole number a request"),
        ({"prompt_tokens": np.ones((4, 1), dtype=int)}, "prompt_tokens must hold one whole number a request"),
        ({"max_concurrency": 0}, "max_concurrency must be at least 1, or None for no bound, but got 0"),
        ({"prefix_blocks": ((1,),) * 4}, "prefix_block_tokens must be at least 1"),
        ({"prefix_block_tokens": 512}, "prefix_blocks is None; give both or neither"),
        ({"prefix_blocks": ((1,),), "prefix_block_tokens": 16}, "has 1 for 4 requests"),
        (
            {"prefix_blocks": ((1,), (1, 2), (1, 2), (1, 2, 3, 4)), "prefix_block_tokens": 16},
            "request 3 has 4 prefix blocks of 16 tokens, more than its prompt of 40 tokens can hold",
        ),
        (
            {"prefix_blocks": ((1,), (1, 2), (1, 2), (1, 2)), "prefix_block_tokens": 20},
            "request 1 has 2 prefix blocks of 20 tokens, more than its prompt of 20 tokens can hold",
        ),
        ({"prompt_tokens": np.array([2**63] * 4, dtype=np.uint64)}, "prompt_tokens must fit 64 bits with a sign"),
    ],
)
def test_a_workload_that_does_not_hold_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        workload(**changes)


def test_arrays_are_read_only_and_the_callers_stay_writeable() -> None:
    arrivals = np.array([0.0, 1.0, 1.0, 4.0])
    made = workload(arrival_s=arrivals)
    for array in (made.arrival_s, made.prompt_tokens, made.output_tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    arrivals[0] = 0.5  # still the caller's


def test_dtypes_are_those_promised() -> None:
    made = workload(arrival_s=[0, 1, 2, 3], prompt_tokens=np.array([1, 2, 3, 4], dtype=np.uint16))
    assert (made.arrival_s.dtype, made.prompt_tokens.dtype) == (np.float64, np.int64)


def test_the_rate_counts_requests_up_to_the_last_arrival() -> None:
    assert workload().arrivals_per_s == 1.0
    assert workload(arrival_s=np.zeros(4)).arrivals_per_s == math.inf


def test_a_slice_holds_its_start_and_not_its_end() -> None:
    sliced = workload().sliced(1.0, 4.0)
    assert sliced.arrival_s.tolist() == [0.0, 0.0]
    assert sliced.prompt_tokens.tolist() == [20, 30]
    assert workload().sliced(1.5).arrival_s.tolist() == [2.5]
    with pytest.raises(
        ValueError, match=r"no request arrives from 2.0 s to before 3.0 s; arrivals lie between 0 s and 4 s"
    ):
        workload().sliced(2.0, 3.0)
    for bounds in ((3.0, 3.0), (-1.0, 3.0), (math.nan, 3.0)):
        with pytest.raises(ValueError, match="a slice must satisfy"):
            workload().sliced(*bounds)


def test_length_bounds_include_their_ends_and_keep_arrivals() -> None:
    kept = workload().with_lengths(min_prompt_tokens=20, max_prompt_tokens=30)
    assert (kept.arrival_s.tolist(), kept.output_tokens.tolist()) == ([1.0, 1.0], [2, 3])
    assert workload().with_lengths(min_output_tokens=2, max_output_tokens=2).prompt_tokens.tolist() == [20]
    with pytest.raises(ValueError, match=r"at least 1 prompt tokens and 5 to 9 output tokens; .* outputs 1 to 4"):
        workload().with_lengths(min_output_tokens=5, max_output_tokens=9)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_factor_is_a_number_above_zero(factor: float) -> None:
    with pytest.raises(ValueError, match="rate_factor must be a number above 0"):
        workload().scaled(factor)


@given(whole=workloads(), cut=st.integers(0, 100), factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_slices_part_a_workload_and_scaling_multiplies_its_rate(whole: Workload, cut: int, factor: float) -> None:
    cut_s = cut / 4
    parts = []
    for bounds in ((0.0, cut_s), (cut_s, math.inf)):
        try:
            parts.append(whole.sliced(*bounds))
        except ValueError:
            continue  # no request there
    assert sum(part.num_requests for part in parts) == whole.num_requests
    assert np.concatenate([part.prompt_tokens for part in parts]).tolist() == whole.prompt_tokens.tolist()
    assert sum((part.prefix_blocks or () for part in parts), ()) == whole.prefix_blocks
    scaled = whole.scaled(factor)
    assert scaled.arrivals_per_s == whole.arrivals_per_s * factor
    assert scaled.scaled(1 / factor).arrival_s.tolist() == whole.arrival_s.tolist()


@given(whole=workloads(), num=st.integers(1, 40), longest=st.integers(1, 1000))
def test_filters_keep_whole_requests_in_order(whole: Workload, num: int, longest: int) -> None:
    rows = list(zip(whole.arrival_s, whole.prompt_tokens, whole.output_tokens, whole.prefix_blocks or (), strict=True))
    first = whole.first(num)
    assert (
        list(zip(first.arrival_s, first.prompt_tokens, first.output_tokens, first.prefix_blocks or (), strict=True))
        == (rows[:num])
    )
    expected = [row for row in rows if row[1] <= longest]
    if expected:
        kept = whole.with_lengths(max_prompt_tokens=longest)
        assert list(
            zip(kept.arrival_s, kept.prompt_tokens, kept.output_tokens, kept.prefix_blocks or (), strict=True)
        ) == (expected)


def test_first_needs_at_least_one() -> None:
    with pytest.raises(ValueError, match="num_requests must be at least 1, but got 0"):
        workload().first(0)


def test_a_bound_and_a_source_survive_every_change() -> None:
    made = workload(max_concurrency=7, source="by hand")
    for changed in (made.sliced(1.0), made.scaled(2.0), made.first(2), made.with_lengths(max_prompt_tokens=20)):
        assert (changed.max_concurrency, changed.source) == (7, "by hand")

"""A server's accepted counts become traces that say no more than the server did."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import replay
from traces.folder.tables import alignment_of
from traces.importers.base import ForeignTraceError, ImportedTraces
from traces.importers.catalog import read_foreign
from traces.importers.unseen import Unseen
from traces.schema import FinishReason, RequestTrace


def response(accepted: list[int], drafted: list[int], *, num_output: int | None = None, **more: Any) -> dict[str, Any]:
    """A response body; by default with as many tokens as the steps and the prefill emit."""
    total = 1 + sum(accepted) + len(accepted)
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "…", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": total if num_output is None else num_output},
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": 2.0,
                "num_spec_steps": len(accepted),
                "per_step_accepted": accepted,
                "per_step_drafted": drafted,
            }
        },
        "temperature": 0.0,
        **more,
    }


def written(path: Path, *responses: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in responses), encoding="utf-8")
    return path


def test_counts_become_ranks_where_they_are_known(tmp_path: Path) -> None:
    read = read_foreign(written(tmp_path / "a.jsonl", response([2, 0, 3], [3, 3, 3], prompt_id="chat-1")))
    (request,) = read.requests
    assert request.ranks == (0, 0, 1, 1, 0, 0, 0, None)
    assert request.num_context_tokens == 21  # the prefill's token is one of them
    assert (request.prompt_id, request.finish_reason) == ("chat-1", FinishReason.MAX_TOKENS)
    assert request.max_new_tokens is None
    assert read.unseen_share == pytest.approx(1 / 8)
    (trace,) = read.traces()
    assert trace.ranks == (0, 0, 1, 1, 0, 0, 0, 1)
    assert (trace.known_ranks, trace.signals, trace.class_probs, trace.tail_depth) == (1, (), (), 0)
    (generous,) = replace(read, unseen=Unseen.ACCEPTED).traces()
    assert generous.ranks == (0, 0, 1, 1, 0, 0, 0, 0)


def test_a_step_without_a_draft_is_unknown_and_a_stop_is_not_explained(tmp_path: Path) -> None:
    stopped = response([1, 0], [2, 0], choices=[{"finish_reason": "stop"}])
    (request,) = read_foreign(written(tmp_path / "a.jsonl", stopped)).requests
    assert request.ranks == (0, 1, None)
    assert request.finish_reason is None


def test_a_last_step_may_be_cut_but_not_by_more_than_it_accepted(tmp_path: Path) -> None:
    (request,) = read_foreign(written(tmp_path / "a.jsonl", response([0, 3], [3, 3], num_output=4))).requests
    assert request.ranks == (1, 0, 0)
    with pytest.raises(ForeignTraceError, match=r"b\.jsonl, line 1: the steps emit 5 tokens .* completion_tokens is 2"):
        read_foreign(written(tmp_path / "b.jsonl", response([0, 3], [3, 3], num_output=2)))


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    lines = [response([1], [2], num_output=9), response([], []), response([2], [2], temperature=0.8)]
    read = read_foreign(written(tmp_path / "a.jsonl", *lines))
    assert len(read.requests) == 2
    assert "20% of the tokens followed a whole accepted draft: nobody asked the draft about them" in read.limits
    assert "6 tokens came from steps without a draft, at unknown places, and are left out" in read.limits
    assert "1 requests without a drafted step are left out" in read.limits
    assert any("above temperature 0" in limit for limit in read.limits)


def test_an_unknown_temperature_is_asked_for_and_not_made_up(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", response([1], [2], temperature=None))
    with pytest.raises(ForeignTraceError, match="does not say at which temperature"):
        read_foreign(path).traces()
    assert read_foreign(path, temperature=0.7).traces()[0].temperature == 0.7


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[1]", "line 2: Input should be an object"),
        (json.dumps(response([1], [1, 2])), "line 2: 1 entries in per_step_accepted, 2 in per_step_drafted"),
        (json.dumps(response([3], [2])), "line 2: step 0 accepts 3 of 2 drafted"),
        (json.dumps(response([-1], [2])), "line 2: metrics.speculative_decoding.per_step_accepted.0"),
        (json.dumps(response([1.5], [2], num_output=3)), "line 2: metrics.speculative_decoding.per_step_accepted.0"),
        (json.dumps(response([True], [2])), "line 2: metrics.speculative_decoding.per_step_accepted.0"),
        (json.dumps({**response([1], [2]), "metrics": None}), "line 2: metrics: "),
        (json.dumps({**response([1], [2]), "usage": {}}), "line 2: usage.prompt_tokens: "),
        (json.dumps(response([1], [2], temperature=-1)), "line 2: temperature: "),
        (json.dumps(response([1], [2])).replace("0.0", "NaN"), "line 2: "),
        ("[" * 100_000, "line 2: "),
        ("\x00\ud800", "line 2: "),
    ],
)
def test_a_damaged_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(response([1], [2])).encode() + b"\n" + line.encode(errors="surrogatepass") + b"\n")
    with pytest.raises(ForeignTraceError) as refused:
        read_foreign(path)
    message = str(refused.value)
    assert message.startswith(f"{path}, {problem}")
    assert "\n" not in message


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ForeignTraceError, match=r"cannot read .*No such file"):
        read_foreign(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    with pytest.raises(ForeignTraceError, match="is empty"):
        read_foreign(tmp_path / "empty.jsonl")
    (tmp_path / "other.csv").write_text("TIMESTAMP,ContextTokens\n")
    with pytest.raises(ForeignTraceError, match="trace in a known format; these are: JSON lines of vLLM"):
        read_foreign(tmp_path / "other.csv")
    with pytest.raises(ForeignTraceError, match="no request with a drafted step"):
        read_foreign(written(tmp_path / "idle.jsonl", response([], [])))
    whole = gzip.compress(json.dumps(response([1], [2])).encode())
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ForeignTraceError, match="cannot read"):
        read_foreign(tmp_path / "torn.jsonl.gz")
    (tmp_path / "whole.jsonl.gz").write_bytes(whole)
    assert len(read_foreign(tmp_path / "whole.jsonl.gz").requests) == 1


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(response([1], [2])).encode() + b"\r\n\r\n")
    assert len(read_foreign(path).requests) == 1


@pytest.mark.parametrize(
    ("policy", "is_answered"),
    [
        (Autoregressive(), True),
        (FixedLength(4), True),
        (Pearl(4), True),
        (Saguaro(draft_length=3, fan_out=1), False),
        (Saguaro(draft_length=3, fan_out=4), False),
        (ConfidenceStop(threshold=0.5), False),
    ],
)
def test_policies_that_ask_for_more_are_refused(policy: Policy, is_answered: bool, tmp_path: Path) -> None:
    (trace,) = read_foreign(written(tmp_path / "a.jsonl", response([2, 0, 3], [3, 3, 3]))).traces()
    if is_answered:
        assert replay(policy, trace)
    else:
        with pytest.raises(ValueError, match=r"tells only the draft's 1 best tokens apart|holds no draft confidences"):
            replay(policy, trace)


def test_a_run_folder_does_not_make_its_ranks_exact(tmp_path: Path) -> None:
    (trace,) = read_foreign(written(tmp_path / "a.jsonl", response([2, 0, 3], [3, 3, 3]))).traces()
    with pytest.raises(ValueError, match="knows its ranks in part only"):
        alignment_of(trace, {})


def test_a_rank_above_the_known_ones_is_refused(tmp_path: Path) -> None:
    (trace,) = read_foreign(written(tmp_path / "a.jsonl", response([2], [3]))).traces()
    with pytest.raises(ValueError, match="has rank 2, but known_ranks tells only 1 apart"):
        replace(trace, ranks=(0, 2, 0))


def served(ranks: list[int], draft_length: int) -> tuple[RequestTrace, ImportedTraces]:
    """A request as it is, and as a server with a fixed draft length would report it."""
    truth = RequestTrace(
        request_id=0,
        prompt_id="p",
        num_prompt_tokens=21,
        max_new_tokens=len(ranks),
        temperature=0.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=tuple(ranks),
    )
    rounds = replay(FixedLength(draft_length), truth)
    accepted, drafted = [round_.num_accepted for round_ in rounds], [round_.num_pending for round_ in rounds]
    body = response(accepted, drafted, num_output=1 + len(ranks))
    with TemporaryDirectory() as place:
        return truth, read_foreign(written(Path(place) / "a.jsonl", body))


@given(
    ranks=st.lists(st.sampled_from([0, 0, 0, 1, 5]), min_size=1, max_size=40),
    served_length=st.integers(1, 6),
    other_length=st.integers(1, 8),
)
def test_replays_are_exact_at_the_served_length_and_bounded_at_others(
    ranks: list[int], served_length: int, other_length: int
) -> None:
    truth, read = served(ranks, served_length)
    both = {unseen: replace(read, unseen=unseen).traces()[0] for unseen in Unseen}

    def steps(trace: RequestTrace, length: int) -> list[tuple[int, int, int]]:
        rounds = replay(FixedLength(length), trace)
        return [(round_.num_pending, round_.num_accepted, round_.num_emitted) for round_ in rounds]

    for trace in both.values():
        assert trace.num_tokens == truth.num_tokens
        assert steps(trace, served_length) == steps(truth, served_length)
    num_true = len(steps(truth, other_length))
    assert len(steps(both[Unseen.ACCEPTED], other_length)) <= num_true
    assert num_true <= len(steps(both[Unseen.REJECTED], other_length))

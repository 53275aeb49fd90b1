"""Metrics of rounds by hand."""

from __future__ import annotations

import math

import pytest

from traces.metrics.counts import Counts, count_rounds, summarise_rounds, time_covered_s
from traces.schema import RequestRecord, RollbackCase, Round, RoundTimes


def round_of(request_id: int = 0, index: int = 0, **changes: object) -> Round:
    plain = Round(
        request_id=request_id,
        round=index,
        position=0,
        num_serial=4,
        num_pending=4,
        num_accepted=4,
        num_emitted=5,
        fanout=(),
        num_branches=0,
        num_branch_steps=0,
        num_drafted=4,
        num_draft_forwards=4,
        next_rank=-1,
        is_hit=False,
        num_kept=0,
        num_rejected=0,
        num_sibling=0,
        num_trimmed=0,
        num_unused=0,
        rollback_case=RollbackCase.NONE,
        predicted_class=-1,
        is_finished=False,
    )
    return plain._replace(**changes)


def request_of(request_id: int, arrival_s: float, finish_s: float) -> RequestRecord:
    return RequestRecord(
        request_id, "p", "policy", 0, 1.0, 0, 1.0, 0, 0, arrival_s, arrival_s, finish_s, 4, 5, 5, "eos", "", True
    )


REJECTED = round_of(index=1, num_accepted=1, num_emitted=2, num_rejected=3)
HIT = round_of(
    index=2,
    num_branches=3,
    num_branch_steps=2,
    num_serial=0,
    num_drafted=9,
    num_draft_forwards=3,
    is_hit=True,
    num_kept=1,
    num_sibling=6,
    num_trimmed=1,
)
LAST = round_of(
    index=3,
    num_branches=1,
    num_branch_steps=1,
    num_serial=0,
    num_pending=1,
    num_accepted=1,
    num_emitted=1,
    num_drafted=2,
    num_draft_forwards=2,
    num_unused=2,
    is_finished=True,
)
ROUNDS = [round_of(), REJECTED, HIT, LAST]


def test_counts_by_hand() -> None:
    counts = count_rounds(ROUNDS)
    assert counts == Counts(
        num_rounds=4,
        num_emitted=13,
        num_submitted=13,
        num_accepted=10,
        num_rejected=3,
        num_drafted=19,
        num_lost=12,
        num_draft_forwards=13,
        num_hedged_rounds=1,
        num_hits=1,
    )
    assert counts.tokens_per_target_forward == 13 / 4
    assert counts.mean_acceptance_length == 1 + 10 / 4
    assert counts.draft_acceptance_rate == 10 / 13
    assert counts.rejected_rate == 3 / 13
    assert counts.wasted_draft_rate == 12 / 19
    assert counts.wasted_target_rate == 4 / 17
    assert counts.draft_forwards_per_token == 1.0
    assert counts.hit_rate == 1.0  # the last round could not hit


def test_rates_without_drafts_are_unknown() -> None:
    plain = round_of(num_pending=0, num_accepted=0, num_emitted=1, num_drafted=0)
    counts = count_rounds([plain])
    assert math.isnan(counts.draft_acceptance_rate)
    assert math.isnan(counts.hit_rate)
    assert counts.wasted_target_rate == 0


def test_decode_time_leaves_out_the_prefill() -> None:
    rounds = [(done, RoundTimes(2.0 + i, 3.0 + i, 0.25, 0.5)) for i, done in enumerate(ROUNDS)]
    summary = summarise_rounds(rounds, [request_of(0, 1.0, 6.0)])
    assert (summary.total_s, summary.decode_s, summary.num_requests) == (5.0, 4.0, 1)
    assert summary.tokens_per_s == 13 / 5
    assert summary.decode_tokens_per_s == 13 / 4
    assert (summary.draft_utilisation, summary.target_utilisation) == (0.25, 0.5)


def test_requests_at_the_same_time_count_once() -> None:
    rounds = [
        (round_of(0), RoundTimes(0.0, 4.0, 1.0, 3.0)),
        (round_of(1), RoundTimes(2.0, 6.0, 1.0, 3.0)),
        (round_of(2), RoundTimes(10.0, 11.0, 1.0, 1.0)),
    ]
    requests = [request_of(0, 0.0, 4.0), request_of(1, 1.0, 6.0), request_of(2, 9.0, 11.0)]
    summary = summarise_rounds(rounds, requests)
    assert (summary.decode_s, summary.total_s) == (7.0, 8.0)
    assert summary.target_utilisation == pytest.approx(1.0)


def test_covered_time() -> None:
    assert time_covered_s([]) == 0
    assert time_covered_s([(1.0, 5.0), (2.0, 3.0), (4.0, 6.0)]) == 5.0

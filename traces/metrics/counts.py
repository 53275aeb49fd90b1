"""Metrics: pure functions of rounds and requests, the same for simulated and for real runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from traces.schema import RequestRecord, Round, RoundTimes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over rounds. num_lost: drafted tokens that were never emitted, whatever the cause."""

    num_rounds: int
    num_emitted: int
    num_submitted: int
    num_accepted: int
    num_rejected: int
    num_drafted: int
    num_lost: int
    num_draft_forwards: int
    num_hedged_rounds: int
    num_hits: int

    @property
    def tokens_per_target_forward(self) -> float:
        """Emitted tokens a round; comparable across all methods."""
        return self.num_emitted / self.num_rounds

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / rounds, as serving engines report it."""
        return 1 + self.num_accepted / self.num_rounds

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / submitted draft tokens; those after a rejection count, so this is not alpha. NaN without any."""
        return _ratio(self.num_accepted, self.num_submitted)

    @property
    def rejected_rate(self) -> float:
        """Rollback, first definition (METHOD Q14): submitted but rejected / submitted draft tokens."""
        return _ratio(self.num_rejected, self.num_submitted)

    @property
    def wasted_draft_rate(self) -> float:
        """Rollback, second definition: drafted but never emitted / drafted; siblings and trimmed tokens count."""
        return _ratio(self.num_lost, self.num_drafted)

    @property
    def wasted_target_rate(self) -> float:
        """Rollback, third definition: target positions that emitted nothing / all (submitted + 1 a round)."""
        positions = self.num_submitted + self.num_rounds
        return (positions - self.num_emitted) / positions

    @property
    def draft_forwards_per_token(self) -> float:
        """Draft forwards for each emitted token, a batched branch step counted once: a proxy of the draft's energy."""
        return self.num_draft_forwards / self.num_emitted

    @property
    def hit_rate(self) -> float:
        """Hit outcomes / rounds that hedged and did not end their request; NaN when nothing was hedged."""
        return _ratio(self.num_hits, self.num_hedged_rounds)


@dataclass(frozen=True, kw_only=True)
class Summary(Counts):
    """A run in numbers.

    total_s:  some request was being served, prefill included. decode_s: some request was decoding, prefill excluded.
    draft_busy_s, target_busy_s: within rounds.
    """

    num_requests: int
    total_s: float
    decode_s: float
    draft_busy_s: float
    target_busy_s: float

    @property
    def tokens_per_s(self) -> float:
        """Emitted tokens / time, prefill included."""
        return _ratio(self.num_emitted, self.total_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Emitted tokens / decode time, prefill excluded: what speed-ups are made of."""
        return _ratio(self.num_emitted, self.decode_s)

    @property
    def draft_utilisation(self) -> float:
        """Share of the decode time in which the draft worked."""
        return _ratio(self.draft_busy_s, self.decode_s)

    @property
    def target_utilisation(self) -> float:
        """Share of the decode time in which the target worked."""
        return _ratio(self.target_busy_s, self.decode_s)


def count_rounds(rounds: Iterable[Round]) -> Counts:
    """Sums over rounds, of one request or of many."""
    return Counts(**_sums(rounds))


def summarise_rounds(rounds: Sequence[tuple[Round, RoundTimes]], requests: Sequence[RequestRecord]) -> Summary:
    """Metrics of a run from its records. A request decodes from the start of its first round until it finishes."""
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for round_, times in rounds:
        starts[round_.request_id] = min(times.start_s, starts.get(round_.request_id, times.start_s))
        ends[round_.request_id] = max(times.end_s, ends.get(round_.request_id, times.end_s))
    return Summary(
        **_sums(round_ for round_, _ in rounds),
        num_requests=len(requests),
        total_s=time_covered_s([(request.arrival_s, request.finish_s) for request in requests]),
        decode_s=time_covered_s([(start_s, ends[request_id]) for request_id, start_s in starts.items()]),
        draft_busy_s=sum(times.draft_s for _, times in rounds),
        target_busy_s=sum(times.verify_s for _, times in rounds),
    )


def time_covered_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    >>> time_covered_s([(0.0, 2.0), (5.0, 6.0), (1.0, 3.0)])
    4.0
    """
    if not intervals:
        return 0.0
    starts, ends = np.array(sorted(intervals)).T
    covered_until = np.maximum.accumulate(ends)
    previous = np.concatenate(([starts[0]], covered_until[:-1]))
    return float(np.maximum(0.0, ends - np.maximum(starts, previous)).sum())


def _sums(rounds: Iterable[Round]) -> dict[str, int]:
    sums = dict.fromkeys(Counts.__dataclass_fields__, 0)
    for round_ in rounds:
        sums["num_rounds"] += 1
        sums["num_emitted"] += round_.num_emitted
        sums["num_submitted"] += round_.num_pending
        sums["num_accepted"] += round_.num_accepted
        sums["num_rejected"] += round_.num_rejected
        sums["num_drafted"] += round_.num_drafted
        sums["num_lost"] += round_.num_rejected + round_.num_sibling + round_.num_trimmed + round_.num_unused
        sums["num_draft_forwards"] += round_.num_draft_forwards
        sums["num_hedged_rounds"] += bool(round_.num_branches) and not round_.is_finished
        sums["num_hits"] += round_.is_hit
    return sums


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")

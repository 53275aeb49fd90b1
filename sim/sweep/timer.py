"""How long rounds take with mean latencies, for arrays of rounds: the engine's arithmetic without its events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.latency.base import LatencyModel
from sim.sweep.lockstep import Floats, Ints, RoundArrays
from traces.fits.interference import Interference
from traces.metrics.round_time import overlapped, round_seconds
from traces.schema import Actor, OpKind, RequestTrace

_FIRST_TABLE_LENGTH = 1024


class RoundTimer:
    """Times rounds of given requests. Runs of equal forwards over growing contexts are differences of running sums."""

    def __init__(
        self,
        latency: LatencyModel,
        traces: Sequence[RequestTrace],
        *,
        takes_turns: bool = False,
        interference: Interference | None = None,
    ) -> None:
        """interference, takes_turns: see `sim.engine.simulate`."""
        self._latency = latency
        self._takes_turns = takes_turns
        self._interference = latency.interference if interference is None else interference
        if takes_turns:
            self._interference = Interference()
        self._prompts = np.array([trace.num_prompt_tokens for trace in traces], dtype=np.int64)
        self._sums: dict[tuple[OpKind, int], Floats] = {}
        self._last_share: Floats = np.zeros(0)  # of a full cold start, after the last round of each lane
        both = [self._prefill_s(Actor.DRAFT), self._prefill_s(Actor.TARGET)]
        pace = self._interference.prefill
        alike = overlapped(both[1], [(both[0], pace, pace)])
        self.prefill_s: Floats = both[0] + both[1] if takes_turns else alike.whole

    def times_of(self, rounds: RoundArrays, request: Ints, position: Ints) -> tuple[Floats, Floats, Floats]:
        """Seconds of each round, and of the draft and the target in it, as long as their work came out to be. position:
        committed tokens before the round."""
        mean = self._latency.mean_array
        sequence = self._prompts[request] + position
        pending = rounds.num_pending

        # Serial drafting: the first forward takes the lag, later ones a token each; no lag, no first forward.
        cached = sequence + rounds.num_carried - rounds.draft_lag
        serial_s = np.zeros(len(sequence))
        drafts = np.flatnonzero(rounds.num_serial)
        if len(drafts):
            lag, start, count = rounds.draft_lag[drafts], cached[drafts], rounds.num_serial[drafts]
            first_s = np.where(lag > 0, mean(OpKind.DRAFT, np.maximum(lag, 1), 1, start), 0.0)
            later = start + lag
            serial_s[drafts] = first_s + self._run_s(OpKind.DRAFT, 1, later, later + count - 1)

        # Ahead of the verdict: one look, then all branches step by step.
        look_s, branches_s = np.zeros(len(sequence)), np.zeros(len(sequence))
        looks = np.flatnonzero(rounds.look_lag)
        if len(looks):
            lag = rounds.look_lag[looks]
            look_s[looks] = mean(OpKind.LOOK, lag, 1, (sequence + pending)[looks] - lag)
        branches = np.flatnonzero((rounds.num_branches > 0) & (rounds.num_branch_steps > 0))
        if len(branches):
            rows, start = rounds.num_branches[branches], (sequence + pending)[branches]
            stop = start + rounds.num_branch_steps[branches]
            for num_rows in np.flatnonzero(np.bincount(rows)).tolist():
                chosen = rows == num_rows
                branches_s[branches[chosen]] = self._run_s(OpKind.BRANCH, num_rows, start[chosen], stop[chosen])

        verify_s = mean(OpKind.VERIFY, pending + 1, 1, sequence - 1)
        host_s = mean(OpKind.HOST, pending, rounds.num_branches, sequence - 1)

        # After a wait the first forwards of a round take longer, serial ones and those ahead alike.
        cold_start = self._latency.cold_start
        if cold_start.first_s:
            num_serial = rounds.num_serial - ((rounds.num_serial > 0) & (rounds.draft_lag == 0))
            num_looks = (rounds.look_lag > 0).astype(np.int64)
            num_steps = np.where(rounds.num_branches > 0, rounds.num_branch_steps, 0)
            num_forwards = num_serial + num_looks + num_steps
            wait_s = verify_s if self._takes_turns else np.maximum(verify_s - look_s - branches_s, 0.0)
            share = self._shares_before(rounds.lane, position, cold_start.share_after(wait_s, num_forwards))
            waking_s = cold_start.first_s * share
            serial_s = serial_s + waking_s * cold_start.weight_of(0, num_serial)
            look_s = look_s + waking_s * cold_start.weight_of(num_serial, num_looks)
            branches_s = branches_s + waking_s * cold_start.weight_of(num_serial + num_looks, num_steps)

        if self._interference.is_none:
            ahead_s = look_s + branches_s
            whole_s = round_seconds(serial_s, ahead_s, verify_s, host_s, takes_turns=self._takes_turns)
            return whole_s, serial_s + ahead_s, verify_s
        paces = self._interference.paces
        parts = [
            (look_s, *paces(pending + 1, 1)),
            (branches_s, *paces(pending + 1, np.maximum(rounds.num_branches, 1))),
        ]
        acting = overlapped(verify_s, parts)
        return serial_s + acting.whole + host_s, serial_s + acting.ahead, acting.verify

    def _shares_before(self, lane: Ints, position: Ints, share: Floats) -> Floats:
        """What each round's predecessor in its lane left: rounds of a lane come in order, also from call to call.

        Before a request's first round the target's prompt has passed: a full cold start.
        """
        if int(lane.max()) >= len(self._last_share):
            self._last_share = np.concatenate([self._last_share, np.zeros(int(lane.max()) + 1)])
        order = np.argsort(lane, kind="stable")
        lanes, shares = lane[order], share[order]
        firsts = np.flatnonzero(np.diff(lanes, prepend=-1))
        lasts = np.append(firsts[1:], len(lanes)) - 1
        before = np.roll(shares, 1)
        before[firsts] = self._last_share[lanes[firsts]]
        self._last_share[lanes[lasts]] = shares[lasts]
        shares_before = np.empty(len(lane))
        shares_before[order] = before
        shares_before[position == 0] = 1.0
        return shares_before

    def _run_s(self, kind: OpKind, num_branches: int, start: Ints, stop: Ints) -> Floats:
        """Forwards of one token a row at contexts start .. stop - 1."""
        sums = self._sums.get((kind, num_branches))
        length = int(stop.max()) + 1
        if sums is None or len(sums) < length:
            contexts = np.arange(max(2 * length, _FIRST_TABLE_LENGTH))
            means = self._latency.mean_array(kind, 1, num_branches, contexts)
            sums = self._sums[kind, num_branches] = np.concatenate(([0.0], np.cumsum(means)))
        seconds: Floats = sums[stop] - sums[start]
        return seconds

    def _prefill_s(self, actor: Actor) -> Floats:
        """(requests,) `draft_cache.prefill`: the prompt without its last token, nothing for a prompt of one token."""
        seconds: Floats = np.zeros(len(self._prompts))
        chosen = self._prompts > 1
        seconds[chosen] = self._latency.mean_array(OpKind.PREFILL, self._prompts[chosen] - 1, 1, 0, actor=actor)
        return seconds

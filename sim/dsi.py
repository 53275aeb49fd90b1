"""Distributed speculative inference in SimPy: one drafter that never waits, several target servers that verify at once.

DSI: Timor et al. 2024, arXiv:2405.14105. The drafter makes block after block of `lookahead` tokens. Every block goes to the
next free target server as soon as it is drafted, so that verifications of successive blocks overlap in time. A rejection
ends everything that descends from the rejected token, and drafting begins again after the target's own token. A thread
made of target forwards alone runs beside, so that no token ever comes later than in autoregressive decoding.

Each of these rounds overlaps with its successors, which the step machine has no word for; hence a process of its own. The
outcomes are those of a trace, as everywhere: a draft token is right where the target's token has rank 0.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import simpy

from sim.decoding.draft_cache import Forwards
from sim.decoding.policies.base import check_at_least
from sim.decoding.replay import next_mismatches
from sim.durations import DrawnDurations, Durations, MeanDurations
from sim.latency.base import Conditions, LatencyModel
from traces.fits.interference import Interference
from traces.schema import Actor, OpKind, RequestTrace

Process: TypeAlias = Generator[Any, Any, None]  # simpy ships without types for its events' values


@dataclass(frozen=True)
class Dsi:
    """lookahead: tokens of a block. num_servers: target servers, all of them; their number is the SP degree of the paper.
    has_plain_server: one of them is kept for decoding without speculation (the paper's thread of target forwards alone);
    without it a first token that was drafted wrong is found out only with its whole block, as in the published simulator.
    """

    lookahead: int = 4
    num_servers: int = 4
    has_plain_server: bool = True

    def __post_init__(self) -> None:
        check_at_least("lookahead", self.lookahead, 1, instead="for decoding without speculation use autoregressive.")
        check_at_least("num_servers", self.num_servers, 1, instead="a target server is needed.")

    @property
    def num_verifiers(self) -> int:
        """Servers that verify blocks."""
        return self.num_servers - self.has_plain_server


@dataclass(frozen=True, kw_only=True)
class DsiRun:
    """What a simulation gives. decode_s: of each request, from the end of its prefill. num_forwards: of all target servers,
    ended ones and those cut short; num_cancelled: of these, the latter. most_servers: at work at one time.
    """

    num_tokens: int
    decode_s: tuple[float, ...]
    num_rejections: int
    num_drafted: int
    num_forwards: int
    num_cancelled: int
    target_busy_s: float
    draft_busy_s: float
    most_servers: int

    @property
    def tokens_per_s(self) -> float:
        """Decode speed, requests one after another."""
        return self.num_tokens / sum(self.decode_s)


def simulate_dsi(
    settings: Dsi, traces: Sequence[RequestTrace], latency: LatencyModel, *, rng: np.random.Generator | None = None
) -> DsiRun:
    """Decode recorded requests one after another. rng: draws operation times; None takes their means.

    Work is cut short in no time and servers come free at once; verifications report in the order of their blocks. Draft and
    target work at once all the time, and slow each other down so long.
    """
    latency = latency.under(Conditions(drafts=True))
    rngs = rng.spawn(len(traces)) if rng is not None else []
    means = MeanDurations(latency)
    decodings = []
    for index, trace in enumerate(traces):
        durations = DrawnDurations(latency, rngs[index]) if rng is not None else means
        decoding = _Decoding(settings, trace, durations, latency.interference)
        decoding.run()
        decodings.append(decoding)
    return DsiRun(
        num_tokens=sum(trace.num_tokens for trace in traces),
        decode_s=tuple(decoding.env.now for decoding in decodings),
        num_rejections=sum(decoding.num_rejections for decoding in decodings),
        num_drafted=sum(decoding.num_drafted for decoding in decodings),
        num_forwards=sum(decoding.num_forwards for decoding in decodings),
        num_cancelled=sum(decoding.num_cancelled for decoding in decodings),
        target_busy_s=sum(decoding.target_busy_s for decoding in decodings),
        draft_busy_s=sum(decoding.draft_busy_s for decoding in decodings),
        most_servers=max(decoding.most_servers for decoding in decodings),
    )


@dataclass
class _Decoding:
    """One request. committed: tokens known to be the target's. checked: tokens up to which blocks have reported since
    drafting last began."""

    settings: Dsi
    trace: RequestTrace
    durations: Durations
    interference: Interference
    committed: int = 0
    checked: int = 0
    num_rejections: int = 0
    num_drafted: int = 0
    num_forwards: int = 0
    num_cancelled: int = 0
    target_busy_s: float = 0.0
    draft_busy_s: float = 0.0
    most_servers: int = 0
    _num_busy: int = 0
    _reports: dict[int, int] = field(default_factory=dict)
    _speculation: list[Any] = field(default_factory=list)
    _plain: Any = None

    def __post_init__(self) -> None:
        self.env = simpy.Environment()
        self._done = self.env.event()
        self._mismatches = next_mismatches(self.trace.ranks)
        verifiers = self.settings.num_verifiers
        self._verifiers = simpy.Resource(self.env, verifiers) if verifiers else None

    def run(self) -> None:
        """Until the last token."""
        self._begin()
        self.env.run(until=self._done)

    def _begin(self) -> None:
        """Draft from the last committed token on, and forget all that was under way."""
        self._stop(self._speculation)
        self._reports, self.checked = {}, self.committed
        self._speculation = [self.env.process(self._draft())] if self._verifiers else []
        self._begin_plain()

    def _begin_plain(self) -> None:
        if self.settings.has_plain_server:
            self._stop([self._plain] if self._plain else [])
            self._plain = self.env.process(self._decode_plainly())

    def _stop(self, processes: Sequence[Any]) -> None:
        for process in processes:
            if process.is_alive and process is not self.env.active_process:
                process.interrupt()

    def _draft(self) -> Process:
        """Blocks up to the end of the request, each handed over as soon as it is there."""
        position, num_tokens = self.committed, self.trace.num_tokens
        while position < num_tokens:
            count = min(self.settings.lookahead, num_tokens - position)
            seconds = self.durations.of(Forwards(Actor.DRAFT, OpKind.DRAFT, count, 1, 1, self._context(position)))
            started = self.env.now
            try:
                yield self.env.timeout(sum(seconds) / float(self.interference.draft.at(count, 1)))
            except simpy.Interrupt:
                return
            finally:
                self.draft_busy_s += self.env.now - started
            self.num_drafted += count
            self._speculation.append(self.env.process(self._verify(position, count)))
            position += count

    def _verify(self, start: int, count: int) -> Process:
        """One block on the next free server: the token before it and all of it but the last tell the target's tokens."""
        assert self._verifiers is not None, "blocks are drafted only where a server verifies"
        try:
            with self._verifiers.request() as turn:
                yield turn
                yield from self._forward(start, count)
        except simpy.Interrupt:
            return
        self._reports[start] = count
        while (count := self._reports.pop(self.checked, 0)) > 0:
            mismatch = self._mismatches[self.checked]
            self.checked += count
            if mismatch < self.checked:
                self._reject(mismatch)
                return
            self._commit(self.checked)

    def _decode_plainly(self) -> Process:
        """One token after another without speculation, from the newest committed one."""
        while self.committed < self.trace.num_tokens:
            position = self.committed
            try:
                yield from self._forward(position, 1)
            except simpy.Interrupt:
                return
            if self.trace.ranks[position]:
                self._reject(position)
                return
            self.committed = position + 1
        self._finish()

    def _forward(self, position: int, num_tokens: int) -> Process:
        (seconds,) = self.durations.of(Forwards(Actor.TARGET, OpKind.VERIFY, 1, num_tokens, 1, self._context(position)))
        started = self.env.now
        self.num_forwards += 1
        self._num_busy += 1
        self.most_servers = max(self.most_servers, self._num_busy)
        try:
            yield self.env.timeout(seconds / float(self.interference.target.at(num_tokens, 1)))
        except simpy.Interrupt:
            self.num_cancelled += 1
            raise
        finally:
            self._num_busy -= 1
            self.target_busy_s += self.env.now - started

    def _commit(self, position: int) -> None:
        """Tokens up to a position are right; the plain thread goes on behind them."""
        if position <= self.committed:
            return
        self.committed = position
        if position >= self.trace.num_tokens:
            self._finish()
        else:
            self._begin_plain()

    def _reject(self, position: int) -> None:
        """The draft was wrong there; the target's own token stands in its place.

        Block and plain thread may find it out in the same instant: the second of them has nothing to add.
        """
        if position < self.committed:
            return
        self.num_rejections += 1
        self.committed = position + 1
        if self.committed >= self.trace.num_tokens:
            self._finish()
        else:
            self._begin()

    def _finish(self) -> None:
        if not self._done.triggered:
            self._done.succeed()

    def _context(self, position: int) -> int:
        """Tokens in the cache before the forward that tells the token at a position."""
        return self.trace.num_prompt_tokens + position - 1

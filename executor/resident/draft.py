"""The draft's half of the step machine with its state on the device: one graph a command, and nothing waited for
unless a policy asks for signals.

It answers as `executor.roles.draft.Draft` does. Pending tokens, the draft's best tokens at each pending position
and their signals stay in device buffers; the host learns them when a round settles, in one wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from executor.noise import NoiseTable
from executor.request import Request
from executor.resident.engine import ResidentEngine
from executor.resident.graphs import Graphs, Handover
from executor.resident.shared import SharedDevice
from executor.roles.draft import Forward
from executor.verification import check_finite, choose, noisy_scores, signals, top_tokens
from sim.decoding.draft_cache import Forwards, prefill
from sim.decoding.policies.base import Needs, hedged_ranks
from traces.schema import UNKNOWN_SIGNAL, Actor, OpKind, Signal

MAX_PENDING = 128
MAX_ROWS = 64
_BRANCH_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LAG_WIDTHS = (1, 2, 4, 8, 16, 32, 64)


class _Timed(NamedTuple):
    """A graph's run of forwards, with marks before and after."""

    forwards: Forwards
    start: Any
    end: Any


class PendingTokens(Sequence[int]):
    """The pending ids: their number is known at once, the ids when the device has drafted them."""

    def __init__(self, draft: GraphDraft, num: int) -> None:
        self._draft, self._num = draft, num

    def __len__(self) -> int:
        return self._num

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._draft.pending_ids()[: self._num][index] if self._num else [][index]


class GraphDraft:
    """The draft's view of one request on its device."""

    def __init__(self, engine: ResidentEngine, shared: SharedDevice) -> None:
        self._engine, self._shared = engine, shared
        self._stream = shared.draft_stream
        self._graphs = Graphs(engine.device, self._stream)
        self._controls = Handover(5, engine.device)
        self._hedged = Handover(
            2 * MAX_ROWS, engine.device
        )  # for each row: tokens taken as accepted, place among the best
        self._token = Handover(1, engine.device)
        self._marks = shared.marks
        self._width = 0  # of the buffers of best tokens
        self._timed: list[_Timed] = []
        self._signals = torch.zeros(MAX_PENDING, 3, device=engine.device)
        self._is_broken = torch.zeros((), dtype=torch.bool, device=engine.device)
        self._host_line = torch.zeros(MAX_PENDING, dtype=torch.int64, pin_memory=engine.device.type == "cuda")

    @property
    def num_captures(self) -> int:
        """Graphs captured so far."""
        return self._graphs.num_captures

    def make_noise(self, request: Request) -> None:
        """The device has the noise, where graphs can reach it."""

    def begin(self, request: Request, needs: Needs, noise: NoiseTable | None) -> None:
        """Start a request; a device that the target shares holds its prompt and noise already."""
        del noise
        if not self._shared.is_shared:
            self._shared.begin(request)
        if self._width < needs.num_alternatives:
            # Graphs write to these buffers, so wider ones mean other graphs.
            self._graphs.clear()
            self._width = max(16, needs.num_alternatives)
            shape, device = (MAX_PENDING, self._width), self._engine.device
            self._best = torch.zeros(shape, dtype=torch.int64, device=device)
            self._host_best = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._num_best = needs.num_alternatives
        self._needs, self._sampling = needs, request.sampling
        self._num_prompt = self._num_committed = len(request.tokens)
        self._num_pending = 0
        self._prompt = request.tokens
        self._knows_frontier = False
        self._fanout: tuple[int, ...] = ()
        self._num_steps = 0
        self._is_fetched = False
        self._hit: int | None = None
        self._engine.reset()
        self._timed = []

    def prefill(self) -> None:
        """Cache the prompt but its last token."""
        prompt = self._prompt[:-1]
        if prompt:
            with self._shared.on(self._stream):
                start = self._marks.mark()
                self._engine.extend(prompt, last_only=True)
                self._note(prefill(Actor.DRAFT, len(self._prompt)), start)

    @property
    def pending(self) -> Sequence[int]:
        """The pending token ids."""
        return PendingTokens(self, self._num_pending)

    def pending_ids(self) -> list[int]:
        """The pending ids on the host, waiting for the device if need be."""
        self._fetch()
        self._wait()
        ids: list[int] = self._host_line[: self._num_pending].tolist()
        return ids

    def draft(self, num_tokens: int) -> list[Signal]:
        """Draft tokens one after another; the first needs no forward when its law is known already."""
        first, missing = self._num_pending, num_tokens
        self._check_room(first + num_tokens)
        with self._shared.on(self._stream):
            if self._knows_frontier:
                self._put_on_line(self._num_committed + first, self._best[first, :1])
                self._knows_frontier = False
                missing -= 1
                self._num_pending += 1
            if missing:
                self._run_laws(OpKind.DRAFT, missing)
                self._num_pending += missing
        self._is_fetched = False
        return self._signals_at(first, num_tokens)

    def submit(self, num_pending: int) -> None:
        """Withdraw the drafted tokens after the first `num_pending`; the law of the first withdrawn one is kept."""
        if num_pending < self._num_pending:
            self._knows_frontier = True
            self._engine.set_length(min(self._engine.length, self._num_committed + num_pending))
            self._num_pending = num_pending
        self._fanout, self._num_steps = (), 0
        self._is_fetched = False
        self._fetch()

    def look(self) -> Signal:
        """The law right after the pending tokens."""
        with self._shared.on(self._stream):
            self._run_laws(OpKind.LOOK, 1)
        self._knows_frontier = True
        self._is_fetched = False
        self._fetch()
        return self._signals_at(self._num_pending, 1)[0]

    def branch(
        self,
        fanout: Sequence[int],
        num_steps: int,
        num_further: int = 0,
        has_verdict: Callable[[], bool] = lambda: True,
    ) -> int:
        """Draft ahead for every hedged outcome, all rows in one batch. A graph runs a fixed number of steps: sessions refuse
        policies that go further."""
        self._fanout, self._num_steps = tuple(fanout), num_steps
        if num_steps == 0:
            return 0
        rows = [(n, rank) for n, count in enumerate(fanout) for rank in self._ranks(n, count)]
        if len(rows) > MAX_ROWS:
            raise ValueError(
                f"{len(rows)} hedges exceed the {MAX_ROWS} rows that a graph drafts; hedge fewer outcomes."
            )
        self._num_rows = width = next(width for width in _BRANCH_WIDTHS if width >= len(rows))
        padded = rows + [rows[0]] * (width - len(rows))
        with self._shared.on(self._stream):
            self._controls.put([self._num_committed, self._num_committed - self._num_prompt])
            self._hedged.put([n for n, _ in padded] + [n * self._width + rank for n, rank in padded])
            start = self._marks.mark()
            key = ("branch", width, num_steps, *self._law_key())
            self._ahead_tokens, self._ahead_signals = self._graphs.run(key, lambda: self._branch_body(width, num_steps))
            self._note(Forwards(Actor.DRAFT, OpKind.BRANCH, num_steps, 1, len(rows), self._engine.length), start)
        return num_steps

    def settle(self, num_accepted: int, next_token: int) -> tuple[int, bool, tuple[Signal, ...]]:
        """Commit an outcome; see `Draft.settle`."""
        best = self.alternatives(num_accepted)
        rank = best.index(next_token) if next_token in best else -1
        self._hit = self._row_of(num_accepted, rank)
        self._settled_at = self._num_committed + num_accepted
        with self._shared.on(self._stream):
            self._token.put([next_token])
            self._put_on_line(self._settled_at, self._token.values)
        self._num_committed = self._settled_at + 1
        self._knows_frontier, self._num_pending = False, 0
        self._is_fetched = False
        if self._hit is None:
            self._engine.set_length(min(self._engine.length, self._settled_at))
            return rank, False, ()
        if not self._num_steps:
            return rank, True, ()
        if not self._needs.signals:
            return rank, True, (UNKNOWN_SIGNAL,) * self._num_steps
        return rank, True, tuple(Signal(*row) for row in self._ahead_signals[:, self._hit].tolist())

    def keep(self, num_kept: int) -> None:
        """After a hit: the first tokens of the continuation become pending, the rest is trimmed."""
        assert self._hit is not None, "keep follows a hit"
        row, num_steps = self._hit, self._num_steps
        self._hit = None
        if not num_steps:
            self._engine.set_length(min(self._engine.length, self._settled_at))
            return
        with self._shared.on(self._stream):
            # The row's forwards cached its first token and all of the continuation but the last one.
            self._engine.take_tail(row, self._num_rows, self._settled_at, min(num_kept + 1, num_steps))
            self._best[:num_steps, : self._num_best].copy_(self._ahead_tokens[:, row])
            self._signals[:num_steps].copy_(self._ahead_signals[:, row])
            if num_kept:
                self._put_on_line(self._num_committed, self._ahead_tokens[:num_kept, row, 0])
        self._num_pending = num_kept
        self._knows_frontier = num_kept < num_steps

    def alternatives(self, num_accepted: int) -> list[int]:
        """The draft's best tokens, best first, at a pending position or right after them; empty when unknown."""
        if num_accepted == self._num_pending and not self._knows_frontier:
            return []
        self._fetch()
        self._wait()
        found: list[int] = self._host_best[num_accepted, : self._num_best].tolist()
        return found

    def take_forwards(self) -> list[Forward]:
        """The forwards since the last call, timed; the device has passed them."""
        timed, self._timed = self._timed, []
        if timed:
            self._wait()
        passed = []
        for forwards, start, end in timed:
            start_s, end_s = self._marks.seconds(start), self._marks.seconds(end)
            share_s = (end_s - start_s) / forwards.num_forwards  # a graph's forwards share its time
            for index, shape in enumerate(forwards.shapes()):
                begin_s = start_s + index * share_s
                passed.append(Forward(shape, begin_s, begin_s + share_s))
        return passed

    # Graphs.

    def _run_laws(self, kind: OpKind, num_tokens: int) -> None:
        """Forward what is not cached yet, then draft on: laws number num_pending .. num_pending + num_tokens - 1."""
        engine = self._engine
        cached, end = engine.length, self._num_committed + self._num_pending
        while (lag := end - cached) > _LAG_WIDTHS[-1]:  # nothing was drafted for a while
            positions, slots, view = engine.line(torch.tensor(cached, device=engine.device), _LAG_WIDTHS[-1])
            engine.forward(self._shared.line.index_select(0, positions), positions, slots, view)
            cached += _LAG_WIDTHS[-1]
        width = next(width for width in _LAG_WIDTHS if width >= lag)
        self._controls.put([cached, lag, end, end - self._num_prompt, self._num_pending])
        start = self._marks.mark()
        key = ("laws", width, num_tokens, *self._law_key())
        self._graphs.run(key, lambda: self._laws_body(width, num_tokens))
        self._note(Forwards(Actor.DRAFT, kind, num_tokens, lag, 1, cached), start)
        engine.set_length(end + num_tokens - 1)

    def _laws_body(self, width: int, num_tokens: int) -> tuple[Tensor, ...]:
        engine, shared = self._engine, self._shared
        cached, lag, end, generated, first = self._controls.values[:5].unbind()
        positions, slots, view = engine.line(cached, width)
        hidden, _ = engine.forward(shared.line.index_select(0, positions), positions, slots, view)
        hidden = hidden.index_select(0, (lag - 1)[None])
        token = cached[None]  # of no meaning before the first step
        for step in range(num_tokens):
            if step:
                positions, slots, view = engine.line(end + step - 1, 1)
                hidden, _ = engine.forward(token, positions, slots, view)
            best, seen = self._law(engine.logits(hidden), (generated + step)[None])
            place = (first + step)[None]
            self._best[:, : self._num_best].index_copy_(0, place, best)
            self._signals.index_copy_(0, place, seen)
            token = best[:, 0]
            # After the last pending token this is the frontier: no harm on the line, for what follows overwrites it.
            shared.line.index_copy_(0, (end + step)[None], token)
        return ()

    def _branch_body(self, width: int, num_steps: int) -> tuple[Tensor, Tensor]:
        engine = self._engine
        accepted, places = self._hedged.values[:width], self._hedged.values[width : 2 * width]
        committed, generated = self._controls.values[:2].unbind()
        token = self._best.flatten().index_select(0, places)
        starts = committed + accepted
        tokens, seen = [], []
        for step in range(num_steps):
            positions, slots, view = engine.branches(starts, step)
            hidden, _ = engine.forward(token, positions, slots, view)
            best, signal = self._law(engine.logits(hidden), generated + accepted + 1 + step)
            tokens.append(best)
            seen.append(signal)
            token = best[:, 0]
        return torch.stack(tokens), torch.stack(seen)

    def _law(self, logits: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Best tokens (rows, alternatives) and signals (rows, 3) of logits at generated positions (rows,)."""
        noise = self._shared.noise_at(generated) if self._sampling.temperature > 0 else None
        scores = noisy_scores(logits, self._sampling, noise)
        best = choose(scores)[:, None] if self._num_best == 1 else top_tokens(scores, self._num_best)
        self._is_broken.logical_or_(~scores.gather(-1, best[:, :1]).isfinite().all())
        if not self._needs.signals:
            return best, torch.zeros(len(logits), 3, device=logits.device)
        return best, signals(logits, scores, self._sampling)

    # The host's side.

    def _ranks(self, num_accepted: int, count: int) -> range:
        """Ranks hedged at a position: a pending token itself is not."""
        ranks = hedged_ranks(count, is_pending_known=num_accepted < self._num_pending)
        return range(ranks.start, min(ranks.stop, self._num_best))

    def _row_of(self, num_accepted: int, rank: int) -> int | None:
        """The hedge of an outcome; None when there is none."""
        if rank < 0 or num_accepted >= len(self._fanout):
            return None
        ranks = self._ranks(num_accepted, self._fanout[num_accepted])
        return sum(self._fanout[:num_accepted]) + ranks.index(rank) if rank in ranks else None

    def _put_on_line(self, position: int, tokens: Tensor) -> None:
        self._shared.line[position : position + len(tokens)].copy_(tokens)

    def _fetch(self) -> None:
        """Send what the host will want of this round's tokens on its way."""
        if self._is_fetched:
            return
        num = self._num_pending + 1
        with self._shared.on(self._stream):
            self._host_best[:num].copy_(self._best[:num], non_blocking=True)
            line = self._shared.line[self._num_committed : self._num_committed + num]
            self._host_line[: len(line)].copy_(line, non_blocking=True)
        self._is_fetched = True

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _signals_at(self, first: int, num: int) -> list[Signal]:
        if not self._needs.signals:
            return [UNKNOWN_SIGNAL] * num
        with self._shared.on(self._stream):
            rows = self._signals[first : first + num].tolist()  # waits for the draft's stream
        return [Signal(*row) for row in rows]

    def _note(self, forwards: Forwards, start: Any) -> None:
        self._timed.append(_Timed(forwards, start, self._marks.mark()))

    def _law_key(self) -> tuple[object, ...]:
        """What a graph's laws depend on; the noise table is read where it lay when the graph was captured."""
        noise = self._shared.noise.data_ptr() if self._sampling.temperature > 0 else 0
        return self._sampling, self._needs.signals, self._num_best, noise

    def _check_room(self, num_pending: int) -> None:
        if num_pending >= MAX_PENDING:
            raise ValueError(
                f"{num_pending} pending tokens exceed the {MAX_PENDING - 1} that a graph keeps; use a shorter draft_length."
            )

    def synchronize(self) -> None:
        """Wait for everything on the device. Raises `LogitsError` if a law was made of logits that are not numbers."""
        self._shared.synchronize()
        if bool(self._is_broken):
            self._is_broken.zero_()
            check_finite([math.nan], "draft", first_position=self._num_prompt, dtype=self._engine.dtype)

    def close(self) -> None:
        """Give the graphs' memory back."""
        self._graphs.clear()

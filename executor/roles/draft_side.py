"""A draft that answers command by command, with its state on the host: any engine, one request at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from executor.models.engines.base import Engine, ids_of
from executor.noise import NoiseTable, noise_of
from executor.request import Request
from executor.roles.draft import Forward
from executor.verification import check_finite, choose, noisy_scores, signals, top_tokens
from sim.decoding.policies.base import Needs, hedged_ranks
from traces.schema import UNKNOWN_SIGNAL, Actor, OpKind, OpShape, Sampling, Signal


class Law(NamedTuple):
    """What is kept of the draft's law at one position: its best tokens in the noisy order, best first, and its signal."""

    tokens: list[int]
    signal: Signal


class _Row(NamedTuple):
    """One hedge being drafted: the outcome it stands for."""

    num_accepted: int
    first: int


class _Step(NamedTuple):
    """What all hedges' laws at one depth are read from, once it is known which hedge was hit: (rows, vocab) each."""

    logits: Tensor
    scores: Tensor


class DraftSide:
    """Holds the draft's view of one request: committed tokens, pending ones, and hedges.

    The engine's linear cache covers a prefix of committed + pending tokens; what is missing ("lag") is forwarded with the
    next draft step. Branch rows live behind the prefix, which is never copied.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._forwards: list[Forward] = []

    @property
    def num_captures(self) -> int:
        """There are no graphs."""
        return 0

    def make_noise(self, request: Request) -> NoiseTable | None:
        """All of a request's noise."""
        return noise_of(request, self._engine.vocab_size, self._engine.device, self._engine.head_tokens)

    def begin(self, request: Request, needs: Needs, noise: NoiseTable | None) -> None:
        """Start a request. The prompt but its last token is cached by `prefill`."""
        self._engine.reset()
        self._sampling: Sampling = request.sampling
        self._needs = needs
        self._noise = noise
        self._committed = list(request.tokens)
        self._num_prompt = len(request.tokens)
        self._pending: list[int] = []
        self._laws: list[Law] = []
        self._frontier: Law | None = None
        self._rows: list[_Row] = []
        self._steps: list[_Step] = []
        self._hit: int | None = None
        self._hit_laws: list[Law] = []
        self._forwards = []

    def prefill(self) -> None:
        """Cache the prompt but its last token."""
        prompt = self._committed[:-1]
        if prompt:
            start = time.perf_counter()
            self._engine.extend(prompt, last_only=True)
            self._note(OpKind.PREFILL, len(prompt), 1, 0, start, time.perf_counter())

    @property
    def pending(self) -> Sequence[int]:
        """The pending token ids."""
        return self._pending

    def alternatives(self, num_accepted: int) -> list[int]:
        """The draft's best tokens, best first, at a pending position or right after them; empty when unknown."""
        law = self._laws[num_accepted] if num_accepted < len(self._pending) else self._frontier
        return [] if law is None else law.tokens

    def take_forwards(self) -> list[Forward]:
        """The forwards since the last call."""
        forwards, self._forwards = self._forwards, []
        return forwards

    def draft(self, num_tokens: int) -> list[Signal]:
        """Draft tokens one after another; the first needs no forward when its law is known already."""
        drafted = []
        for _ in range(num_tokens):
            law = self._frontier or self._forward(OpKind.DRAFT)
            self._frontier = None
            self._pending.append(law.tokens[0])
            self._laws.append(law)
            drafted.append(law.signal)
        return drafted

    def submit(self, num_pending: int) -> None:
        """Withdraw the drafted tokens after the first `num_pending`; the law of the first withdrawn one is kept."""
        if num_pending < len(self._pending):
            self._frontier = self._laws[num_pending]
            self._engine.roll_back(len(self._committed) + num_pending)
            del self._pending[num_pending:], self._laws[num_pending:]

    def look(self) -> Signal:
        """The law right after the pending tokens."""
        self._frontier = self._forward(OpKind.LOOK)
        return self._frontier.signal

    def branch(
        self,
        fanout: Sequence[int],
        num_steps: int,
        num_further: int = 0,
        has_verdict: Callable[[], bool] = lambda: True,
    ) -> int:
        """Draft ahead for every hedged outcome, all rows in one batch: num_steps, and up to num_further more as long as
        has_verdict says no. Returns the steps done."""
        start = time.perf_counter()
        committed, generated = len(self._committed), len(self._committed) - self._num_prompt
        self._rows, self._steps = [], []
        for n, count in enumerate(fanout):
            if count:
                is_pending_known = n < len(self._pending)
                law = self._laws[n] if is_pending_known else self._frontier
                assert law is not None, "hedging the end of the pending tokens needs a look first"
                ranks = hedged_ranks(count, is_pending_known=is_pending_known)
                self._rows.extend(_Row(n, token) for token in law.tokens[ranks.start : ranks.stop])
        if num_steps == 0 and (not num_further or has_verdict()):
            return 0
        engine, num_rows = self._engine, len(self._rows)
        engine.open_branches([committed + row.num_accepted for row in self._rows])
        newest = [row.first for row in self._rows]
        context = engine.length
        for step in range(num_steps + num_further):
            if step >= num_steps and has_verdict():
                break
            logits = engine.grow(newest)
            scores = self._score(logits, [generated + row.num_accepted + 1 + step for row in self._rows])
            newest = ids_of(choose(scores), engine.head_tokens).tolist()
            self._steps.append(_Step(logits, scores))
            end = time.perf_counter()
            self._note(OpKind.BRANCH, 1, num_rows, context + step, start, end)
            start = end
        return len(self._steps)

    def settle(self, num_accepted: int, next_token: int) -> tuple[int, bool, tuple[Signal, ...]]:
        """Commit an outcome. Returns the next token's rank if it is known (else -1), whether a hedge covered it, and the
        signals of that hedge's continuation; `keep` must follow a hit, otherwise `miss`."""
        best = self.alternatives(num_accepted)
        rank = best.index(next_token) if next_token in best else -1
        self._hit = next(
            (i for i, row in enumerate(self._rows) if (row.num_accepted, row.first) == (num_accepted, next_token)), None
        )
        self._settled_at = len(self._committed) + num_accepted
        self._committed += [*self._pending[:num_accepted], next_token]
        if self._hit is None:
            self._miss()
            return rank, False, ()
        # Only the hit hedge's signals and alternatives are ever asked for: read them now, all depths at once.
        self._hit_laws = []
        if self._steps:
            logits, scores = (torch.stack([step[i][self._hit] for step in self._steps]) for i in (0, 1))
            self._hit_laws = self._read(logits, scores)
        return rank, True, tuple(law.signal for law in self._hit_laws)

    def keep(self, num_kept: int) -> None:
        """After a hit: the first tokens of the continuation become pending, the rest is trimmed."""
        assert self._hit is not None, "keep follows a hit"
        laws = self._hit_laws
        if laws:
            # The row's forwards cached its first token and all of the continuation but the last one.
            self._engine.adopt(self._hit, min(num_kept + 1, len(laws)))
        else:
            self._engine.roll_back(min(self._engine.length, self._settled_at))
        self._pending = [law.tokens[0] for law in laws[:num_kept]]
        self._laws = laws[:num_kept]
        self._frontier = laws[num_kept] if num_kept < len(laws) else None
        self._rows, self._steps, self._hit, self._hit_laws = [], [], None, []

    def synchronize(self) -> None:
        """Every command waits for its end."""

    def close(self) -> None:
        """Nothing is held but the model."""

    def _miss(self) -> None:
        self._engine.roll_back(min(self._engine.length, self._settled_at))
        self._pending, self._laws, self._frontier, self._rows, self._steps = [], [], None, [], []

    def _note(
        self,
        kind: OpKind,
        num_tokens: int,
        num_branches: int,
        context_tokens: int,
        start_s: float,
        end_s: float,
        read_s: float = 0.0,
    ) -> None:
        shape = OpShape(Actor.DRAFT, kind, num_tokens, num_branches, context_tokens)
        self._forwards.append(Forward(shape, start_s, end_s, read_s))

    def _forward(self, kind: OpKind) -> Law:
        start = time.perf_counter()
        context = self._engine.length
        num_committed = len(self._committed)
        if context < num_committed:
            lag = [*self._committed[context:], *self._pending]
        else:
            lag = self._pending[context - num_committed :]
        logits = self._engine.extend(lag, last_only=True)
        scores = self._score(logits, [num_committed - self._num_prompt + len(self._pending)])
        end = time.perf_counter()
        (law,) = self._read(logits, scores)
        # Reading signals, which not every policy wants, is timed apart from drafting.
        read_s = time.perf_counter() - end if self._needs.signals else 0.0
        end = end if self._needs.signals else time.perf_counter()
        self._note(kind, len(lag), 1, context, start, end, read_s)
        return law

    def _score(self, logits: Tensor, positions: list[int]) -> Tensor:
        """Noisy scores of logits (rows, columns), each row at its own position."""
        noise = None if self._noise is None else self._noise.at(positions)
        return noisy_scores(logits, self._sampling, noise)

    def _read(self, logits: Tensor, scores: Tensor) -> list[Law]:
        """Laws of (rows, columns): the best tokens, and the signals if they are wanted."""
        count = self._needs.num_alternatives
        columns = choose(scores)[:, None] if count == 1 else top_tokens(scores, count)
        best = scores.gather(-1, columns[:, :1])[:, 0].tolist()
        check_finite(best, "draft", first_position=self._engine.length - 1, dtype=self._engine.dtype)
        tokens = ids_of(columns, self._engine.head_tokens)
        if not self._needs.signals:
            return [Law(row, UNKNOWN_SIGNAL) for row in tokens.tolist()]
        rows = signals(logits, scores, self._sampling).tolist()
        return [Law(row, Signal(*signal)) for row, signal in zip(tokens.tolist(), rows, strict=True)]

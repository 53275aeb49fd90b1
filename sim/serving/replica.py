"""A replica: one SimPy process that plans a step, lets draft and target work, and settles it; the scheduler of an engine.

    step:  draft     serially, the next tokens of every running request
           plan      running requests keep their memory, or the last ones are preempted; prompts get the rest of the tokens
           act       the target verifies all running requests and reads prompts  ||  the draft works ahead, if it has a device
           settle    tokens are committed; requests end, or join the running ones after the last piece of their prompt

Iteration-level scheduling after Orca (OSDI 2022) and vLLM (first come, first served; preemption of the last one by
recompute). Which tokens a round gives is known from its source, so that a step is a handful of operations on arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import simpy

from sim.devices import Fifo
from sim.serving.batch import Chunk, StepPlan
from sim.serving.book import Book, ReplicaTotals
from sim.serving.costs import NOTHING_AHEAD, Costs
from sim.serving.prefixes import PrefixCache
from sim.serving.rounds.base import Ints, RoundSource, ServerLoad
from sim.serving.running import RunningRequest, RunningRequests
from sim.serving.settings import Server

Process: TypeAlias = Generator[Any, Any, None]
_FAR = 1 << 60


class StepRecord(NamedTuple):
    """One step, for those who want to see them: when it began and ended, and what was in it."""

    start_s: float
    end_s: float
    plan: StepPlan


@dataclass(slots=True, eq=False)
class _Prompt:
    """A request whose prompt waits or is being read. num_tokens: to read in all; num_read: read so far. left: tokens to emit.

    place, delivered_s: of a preempted request, which reads its own output again; place is -1 for a new one. first_step: the
    number of the first step that it may be in.
    """

    request: int
    num_tokens: int
    left: int
    place: int = -1
    delivered_s: float = 0.0
    num_read: int = 0
    first_step: int = 0


class Replica:
    """Serves the requests that `submit` gives it, first come, first served.

    prompt_tokens, output_tokens: (requests,) of the workload. on_step: called with every step, for figures and tests.
    """

    def __init__(
        self,
        env: simpy.Environment,
        server: Server,
        costs: Costs,
        source: RoundSource,
        *,
        target: Fifo,
        draft: Fifo,
        book: Book,
        prompt_tokens: Ints,
        output_tokens: Ints,
        prefixes: PrefixCache | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> None:
        self._env, self._server, self._costs, self._source = env, server, costs, source
        self._target, self._draft, self._book, self._on_step = target, draft, book, on_step
        self._prompt_tokens, self._output_tokens, self._prefixes = prompt_tokens, output_tokens, prefixes
        self._waiting: deque[_Prompt] = deque()
        self._prompts: list[_Prompt] = []  # being read
        self._running = RunningRequests(server.max_num_seqs, source.max_pending + 1)
        self._delivered_s = 0.0
        self._fresh: list[int] = []  # joined without a token; their first round brings it
        self._resumed: list[float] = []  # joined again: when they got their last token
        # What is committed and not delivered: first tokens, further ones, of these the ones after a preemption, last ones.
        self._firsts: list[int] = []
        self._num_further = 0
        self._late: list[float] = []
        self._lasts: list[tuple[int, int]] = []
        self._joined_tokens = 0
        self._slots = server.lookahead_tokens
        self._num_planned = 0
        self._idle: simpy.Event | None = None
        self.totals = ReplicaTotals()
        self.outstanding_tokens = 0
        env.process(self._run())

    @property
    def num_requests(self) -> int:
        """Requests in the replica."""
        return self._running.count + len(self._prompts) + len(self._waiting)

    def submit(self, request: int) -> None:
        """Queue a request."""
        prompt = int(self._prompt_tokens[request])
        num_output = self._source.num_output_tokens(request, int(self._output_tokens[request]))
        self._server.check_fits(prompt + num_output + self._source.max_pending, request)
        self.outstanding_tokens += prompt + num_output
        is_late = self._server.schedules_ahead and self._idle is None  # the next step is planned already
        self._waiting.append(
            _Prompt(
                request,
                prompt if self._server.prefill_emits else prompt - 1,
                num_output,
                first_step=self._num_planned + is_late,
            )
        )
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def _run(self) -> Process:
        env, costs, totals, deliver_later = self._env, self._costs, self.totals, self._server.delivers_after_drafting
        target, draft = self._target, self._draft
        while True:
            if not self._running.count and not self._prompts and not self._waiting:
                self._deliver()
                if not self.num_requests:
                    self._idle = env.event()
                    yield self._idle
            start_s = env.now
            plan = self._step_plan()
            serial_s = costs.serial_s(plan)
            if serial_s:
                self._joined_tokens = 0
                totals.draft_busy_s += serial_s
                yield env.timeout(draft.finish_s(serial_s) - start_s)
            if deliver_later:
                self._deliver()
            self._plan(plan)
            rounds, chunks = plan.rounds, plan.chunks
            if rounds is None and not chunks:
                continue

            target_s = costs.target_s(plan)
            draft_chunks: list[Chunk] = []
            if chunks and self._source.max_pending:
                if self._server.joins_draft_prefill:
                    self._joined_tokens += sum(chunk.num_tokens for chunk in chunks)
                else:
                    draft_chunks = chunks
            ahead = NOTHING_AHEAD
            if draft_chunks or (rounds is not None and rounds.details is not None):
                ahead = costs.ahead_s(plan, draft_chunks)
            prefilled_s = draft.finish_s(ahead.prefill_s) if ahead.prefill_s else 0.0
            verified_s = target.finish_s(target_s)
            for ahead_s in (ahead.look_s, ahead.branches_s):
                if ahead_s:
                    yield env.timeout(draft.finish_s(ahead_s) - env.now)
            if prefilled_s:
                yield env.timeout(max(prefilled_s - env.now, 0.0))
            host_s = costs.host_s(plan) if rounds is not None else 0.0
            now = env.now
            settled_s = verified_s if verified_s > now else now
            yield env.timeout(settled_s + host_s - now)
            totals.target_busy_s += target_s
            totals.draft_busy_s += ahead.prefill_s + ahead.look_s + ahead.branches_s
            self._settle(plan, start_s)
            if not deliver_later:
                self._deliver()

    # Before a step.

    def _step_plan(self) -> StepPlan:
        """The next round of every running request; prompts are added when it is known what these leave."""
        running, pool = self._running, self._server.kv_tokens
        tokens, rounds = running.context_tokens, None
        if running.count:
            load = ServerLoad(running.count, len(self._waiting), tokens / pool if pool else 0.0, tokens)
            rounds = self._source.next(running.places, running.left, load)
        contexts = running.contexts if self._on_step is None else running.contexts.copy()
        return StepPlan(contexts, tokens, rounds, joined_tokens=self._joined_tokens)

    def _plan(self, plan: StepPlan) -> None:
        """Memory for the running requests, then tokens of the step for prompts that are being read, then for new ones."""
        server = self._server
        step = self._num_planned
        self._num_planned += 1
        rounds = plan.rounds
        budget = server.max_num_batched_tokens
        if rounds is not None:
            budget -= self._running.count + rounds.num_pending
        if not self._prompts and not self._waiting and self._surely_fits(plan):
            return
        free = self._free_blocks(plan)
        is_short = free < 0
        while free < 0:
            self._preempt(plan)
            free = self._free_blocks(plan)
        for prompt in list(self._prompts):
            if budget <= 0 or prompt not in self._prompts:
                break
            before = len(plan.chunks)
            free, budget = self._read(prompt, plan, free, budget)
            while len(plan.chunks) == before and self._prompts[-1] is not prompt:
                self._preempt(plan)
                is_short = True
                free, budget = self._read(prompt, plan, self._free_blocks(plan), budget)
        while self._waiting and not is_short and budget > 0:
            if self._running.count + len(self._prompts) >= server.max_num_seqs:
                break
            prompt = self._waiting[0]
            if prompt.first_step > step:
                break
            before = len(plan.chunks)
            if self._prefixes is not None:
                prompt.num_read = self._prefixes.num_known(prompt.request, prompt.num_tokens)
            if prompt.num_tokens:
                free, budget = self._read(prompt, plan, free, budget, reserve=server.num_watermark_blocks, is_new=True)
                if len(plan.chunks) == before:
                    prompt.num_read = 0
                    break
            else:  # a prompt of one token, which the first round itself reads
                plan.chunks.append(Chunk(prompt.request, 0, 0, True))
            self._waiting.popleft()
            self._prompts.append(prompt)

    def _read(
        self, prompt: _Prompt, plan: StepPlan, free: int, budget: int, *, reserve: int = 0, is_new: bool = False
    ) -> tuple[int, int]:
        """Add a piece of a prompt to the plan, if its blocks are free; gives what is left of both."""
        take = min(prompt.num_tokens - prompt.num_read, budget)
        if self._server.num_blocks is not None:
            is_held = prompt.num_read and not is_new
            held = self._blocks(prompt.num_read) if is_held else 0
            need = self._blocks(prompt.num_read + take) - held
            if need > free - reserve:
                return free, budget
            free -= need
        plan.chunks.append(Chunk(prompt.request, take, prompt.num_read, prompt.num_read + take == prompt.num_tokens))
        prompt.num_read += take
        return free, budget - take

    def _blocks(self, num_tokens: int) -> int:
        return -(-(num_tokens + self._slots) // self._server.block_tokens)

    def _surely_fits(self, plan: StepPlan) -> bool:
        """Whether the running requests fit by a bound that needs no look at each of them."""
        blocks = self._server.num_blocks
        if blocks is None or plan.rounds is None:
            return True
        count = self._running.count
        tokens = self._running.context_tokens + plan.rounds.num_pending + count * (1 + self._slots)
        return tokens // self._server.block_tokens + count <= blocks

    def _free_blocks(self, plan: StepPlan) -> int:
        """Blocks that the step leaves free; negative where the running requests do not fit."""
        blocks = self._server.num_blocks
        if blocks is None:
            return _FAR
        size = self._server.block_tokens
        used = sum(self._blocks(prompt.num_read) for prompt in self._prompts)
        rounds = plan.rounds
        if rounds is not None:
            pending = rounds.draft_length if rounds.details is None else rounds.details.num_pending
            need = plan.contexts + (pending + 1 + self._slots + size - 1)
            used += int(np.add.reduce(need // size))
        return blocks - used

    def _preempt(self, plan: StepPlan) -> None:
        """Take the memory of the request that came to run last; it waits in front, to read all of its tokens again."""
        self.totals.num_preemptions += 1
        if self._prompts:
            prompt = self._prompts.pop()
            self.totals.num_recomputed_tokens += prompt.num_read
            prompt.num_read = 0
            self._waiting.appendleft(prompt)
            return
        last = self._running.pop()
        self.totals.num_recomputed_tokens += last.context
        place, delivered_s = last.place, self._delivered_s
        if last.request in self._fresh:
            self._fresh.remove(last.request)
            place, delivered_s = -1, 0.0
        self._waiting.appendleft(_Prompt(last.request, last.context, last.left, place, delivered_s))
        count = self._running.count
        plan.contexts, plan.context_tokens = plan.contexts[:count], self._running.context_tokens
        plan.rounds = plan.rounds.first(count) if plan.rounds is not None and count else None

    # After a step.

    def _settle(self, plan: StepPlan, start_s: float) -> None:
        """Commit what the step gave."""
        running, rounds, totals = self._running, plan.rounds, self.totals
        count, held = running.count, running.context_tokens
        if rounds is not None:
            totals.num_steps += 1
            totals.num_request_steps += count
            totals.num_pending += rounds.num_pending
            totals.num_emitted += running.commit(rounds)
            held += rounds.num_pending + count
            if count > totals.max_running:
                totals.max_running = count
            self._num_further += count
            if self._fresh or self._resumed:
                self._num_further -= len(self._fresh) + len(self._resumed)
                self._firsts += self._fresh
                self._late += self._resumed
                self._fresh.clear()
                self._resumed.clear()
            for request in running.take_ended():
                self._end(request)
        for chunk in plan.chunks:
            held += chunk.num_tokens + chunk.context_tokens
            totals.num_prompt_tokens += chunk.num_tokens
        if plan.chunks:
            self._join_read_prompts()
        now = self._env.now
        totals.busy_s += now - start_s
        totals.kv_token_s += held * (now - start_s)
        if held > totals.max_kv_tokens:
            totals.max_kv_tokens = held
        if self._on_step is not None:
            self._on_step(StepRecord(start_s, now, plan))

    def _end(self, request: int) -> None:
        num_output = self._source.num_output_tokens(request, int(self._output_tokens[request]))
        self.outstanding_tokens -= int(self._prompt_tokens[request]) + num_output
        self._lasts.append((request, num_output))

    def _join_read_prompts(self) -> None:
        """Requests whose prompt is read begin to run; with engines' rules they have their first token now."""
        reading = []
        for prompt in self._prompts:
            if prompt.num_read < prompt.num_tokens:
                reading.append(prompt)
                continue
            request, context = prompt.request, prompt.num_tokens
            if self._prefixes is not None:
                self._prefixes.add(request)
            left, place = prompt.left, prompt.place
            if place >= 0:
                self._resumed.append(prompt.delivered_s)
            else:
                place = self._source.begin(request)
                if self._server.prefill_emits:
                    self.totals.num_first += 1
                    self._firsts.append(request)
                    left, place = left - 1, self._source.after_first_token(place)
                    if not left:
                        self._end(request)
                        continue
                else:
                    self._fresh.append(request)
            self._running.add(RunningRequest(context, left, place, request))
        self._prompts = reading

    def _deliver(self) -> None:
        """What was committed reaches the clients now."""
        if not (self._num_further or self._firsts or self._lasts or self._late):
            return
        book, now = self._book, self._env.now
        if self._num_further:
            book.gaps.add(now - self._delivered_s, self._num_further)
            self._num_further = 0
        self._delivered_s = now
        if self._firsts or self._lasts or self._late:
            for delivered_s in self._late:
                book.gaps.add(now - delivered_s, 1)
            for request in self._firsts:
                book.first_token(request)
            for request, num_output in self._lasts:
                book.finish(request, num_output)
            self._late.clear()
            self._firsts.clear()
            self._lasts.clear()

"""How long the parts of a step take, of a whole batch.

`SummedCosts` is for costs that hang on sums (new tokens, contexts, requests): those of measured servers do (Truth: f(tokens) +
k x sum of contexts), and they are fast. `LatencyCosts` carries any latency model of single requests over to batches.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sim.decoding.draft_cache import Forwards
from sim.decoding.draft_cache import host as host_forwards
from sim.durations import MeanDurations, Warmth
from sim.latency.base import LatencyModel
from sim.serving.batch import Chunk, StepPlan
from sim.serving.rounds.base import Details, Ints
from traces.schema import Actor, OpKind, OpShape


class Ahead(NamedTuple):
    """Seconds of the draft during a verification: the prompts it reads, its look, and the steps of all branches."""

    prefill_s: float = 0.0
    look_s: float = 0.0
    branches_s: float = 0.0


NOTHING_AHEAD = Ahead()


class Costs(Protocol):
    """Seconds of the parts of a step; 0 where there is nothing to do."""

    def serial_s(self, plan: StepPlan) -> float:
        """The draft, before the verification."""
        ...

    def target_s(self, plan: StepPlan) -> float:
        """The target: the verification of all running requests, and the pieces of prompts."""
        ...

    def ahead_s(self, plan: StepPlan, chunks: list[Chunk]) -> Ahead:
        """The draft, during it. chunks: what it reads of prompts beside the target. Not asked where there is nothing to do."""
        ...

    def host_s(self, plan: StepPlan) -> float:
        """The host, after it."""
        ...


class SummedModel(Protocol):
    """Seconds of one forward of a batch, from its sums."""

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        """Of the target."""
        ...

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        """Of the draft."""
        ...


class SummedCosts:
    """Costs from sums. A row of a branch counts as a request with its whole context."""

    def __init__(self, model: SummedModel, *, host_s: float = 0.0) -> None:
        self._target_s, self._draft_s, self._host_s = model.target_s, model.draft_s, host_s

    def serial_s(self, plan: StepPlan) -> float:
        rounds = plan.rounds
        if rounds is None:
            return 0.0
        if rounds.details is not None:
            return self._detailed_serial_s(plan, rounds.details)
        running, length = plan.num_running, rounds.draft_length
        if not length:
            if not rounds.keeps_draft:
                return 0.0
            length = 1
        draft_s, context = self._draft_s, plan.context_tokens
        total_s = draft_s(running + rounds.draft_behind + plan.joined_tokens, context, running)
        for _ in range(length - 1):
            context += running
            total_s += draft_s(running, context, running)
        return total_s

    def target_s(self, plan: StepPlan) -> float:
        running, context = plan.num_running, plan.context_tokens
        num_tokens = running
        if plan.rounds is not None:
            num_tokens += plan.rounds.num_pending
        for chunk in plan.chunks:
            num_tokens += chunk.num_tokens
            context += chunk.context_tokens
            running += 1
        return self._target_s(num_tokens, context, running) if num_tokens else 0.0

    def ahead_s(self, plan: StepPlan, chunks: list[Chunk]) -> Ahead:
        prefill_s = look_s = branches_s = 0.0
        if chunks:
            num_tokens, context = (
                sum(chunk.num_tokens for chunk in chunks),
                sum(chunk.context_tokens for chunk in chunks),
            )
            prefill_s = self._draft_s(num_tokens, context, len(chunks))
        details = plan.rounds.details if plan.rounds is not None else None
        if details is not None:
            looks = details.look_lag > 0
            num_looks = int(np.count_nonzero(looks))
            if num_looks:
                contexts = plan.contexts + details.num_pending
                look_s = self._draft_s(int(details.look_lag.sum()), int(contexts[looks].sum()), num_looks)
                steps = details.num_branch_steps
                rows_at, contexts_at = _at_each_step(steps, details.num_branches, contexts * details.num_branches)
                for rows, context in zip(rows_at, contexts_at, strict=True):
                    branches_s += self._draft_s(rows, context, rows)
        return Ahead(prefill_s, look_s, branches_s)

    def host_s(self, plan: StepPlan) -> float:
        return self._host_s

    def _detailed_serial_s(self, plan: StepPlan, details: Details) -> float:
        forwards = details.num_serial_forwards
        running_at, contexts_at = _at_each_step(forwards, None, plan.contexts + details.cached_offset)
        total_s = 0.0
        for step, (running, context) in enumerate(zip(running_at, contexts_at, strict=True)):
            if step:
                total_s += self._draft_s(running, context + step * running, running)
            else:
                num_tokens = int(details.first_tokens[forwards > 0].sum())
                total_s = self._draft_s(num_tokens + plan.joined_tokens, context, running)
        return total_s


def _at_each_step(num_steps: Ints, rows: Ints | None, contexts: Ints) -> tuple[list[int], list[int]]:
    """(steps,) rows and contexts, summed over those that still run at step 0, 1, ... until none does."""
    counts = np.bincount(num_steps, rows)
    if len(counts) == 1:
        return [], []
    rows_at = np.add.accumulate(counts[:0:-1])[::-1]
    contexts_at = np.add.accumulate(np.bincount(num_steps, contexts)[:0:-1])[::-1]
    return rows_at.astype(np.int64).tolist(), contexts_at.astype(np.int64).tolist()


class LatencyCosts:
    """Costs from a latency model of single requests.

    A request alone takes exactly what `sim.engine` gives it. Of a batch, all new tokens together take what one request of as
    many tokens would after an empty context, and each request pays for its context besides: additive, as measured servers are.
    (A fitted latency knows the widths that were recorded, and is flat beyond; its batches are an extrapolation.)
    """

    def __init__(self, latency: LatencyModel, *, longest: int = 0, takes_turns: bool = False) -> None:
        self._latency, self._takes_turns = latency, takes_turns
        self._durations = MeanDurations(latency, longest)
        self._warmth = Warmth(latency.cold_start, takes_turns=takes_turns)

    def serial_s(self, plan: StepPlan) -> float:
        rounds = plan.rounds
        if rounds is None:
            return 0.0
        details = rounds.details if rounds.details is not None else _details_of(plan)
        if plan.num_running == 1:
            count, first_tokens = int(details.num_serial_forwards[0]), int(details.first_tokens[0])
            context = int(plan.contexts[0] + details.cached_offset[0])
            return self._drafted_s(Forwards(Actor.DRAFT, OpKind.DRAFT, count, first_tokens, 1, context))
        total_s, contexts = 0.0, plan.contexts + details.cached_offset
        for step in range(int(details.num_serial_forwards.max())):
            runs = details.num_serial_forwards > step
            tokens = details.first_tokens[runs] if step == 0 else np.ones(int(runs.sum()), dtype=np.int64)
            earlier = details.first_tokens[runs] + step - 1 if step else 0
            total_s += self._together_s(OpKind.DRAFT, tokens, 1, contexts[runs] + earlier)
        return total_s

    def target_s(self, plan: StepPlan) -> float:
        total_s = 0.0
        if plan.rounds is not None:
            details = plan.rounds.details
            if plan.num_running == 1:
                forwards = Forwards(
                    Actor.TARGET, OpKind.VERIFY, 1, plan.rounds.num_pending + 1, 1, int(plan.contexts[0])
                )
                total_s = self._durations.of(forwards)[0]
                self._warmth.verify(total_s)
            else:
                pending = plan.rounds.draft_length if details is None else details.num_pending
                total_s = self._together_s(OpKind.VERIFY, pending + np.ones_like(plan.contexts), 1, plan.contexts)
        return total_s + self._prefill_s(Actor.TARGET, plan.chunks)

    def ahead_s(self, plan: StepPlan, chunks: list[Chunk]) -> Ahead:
        prefill_s = self._prefill_s(Actor.DRAFT, chunks)
        if prefill_s:
            self._warmth = Warmth(self._latency.cold_start, takes_turns=self._takes_turns)
        details = plan.rounds.details if plan.rounds is not None else None
        if details is None:
            return Ahead(prefill_s)
        contexts = plan.contexts + details.num_pending
        if plan.num_running == 1:
            lag, rows, steps = (
                int(column[0]) for column in (details.look_lag, details.num_branches, details.num_branch_steps)
            )
            context = int(contexts[0])
            look_s = self._drafted_s(Forwards(Actor.DRAFT, OpKind.LOOK, int(lag > 0), lag, 1, context + 1 - lag))
            branches_s = self._drafted_s(Forwards(Actor.DRAFT, OpKind.BRANCH, steps, 1, rows, context + 1))
            return Ahead(prefill_s, look_s, branches_s)
        looks = details.look_lag > 0
        look_s = branches_s = 0.0
        if looks.any():
            lags = details.look_lag[looks]
            look_s = self._together_s(OpKind.LOOK, lags, 1, contexts[looks] + 1 - lags)
        for step in range(int(details.num_branch_steps.max())):
            runs = details.num_branch_steps > step
            ones = np.ones(int(runs.sum()), dtype=np.int64)
            branches_s += self._together_s(OpKind.BRANCH, ones, details.num_branches[runs], contexts[runs] + 1 + step)
        return Ahead(prefill_s, look_s, branches_s)

    def host_s(self, plan: StepPlan) -> float:
        rounds = plan.rounds
        if rounds is None:
            return 0.0
        self._warmth.close_round()
        branches = 0 if rounds.details is None else int(rounds.details.num_branches.sum())
        context = plan.context_tokens // max(plan.num_running, 1)
        return self._durations.of(host_forwards(rounds.num_pending, branches, context + 1))[0]

    def _drafted_s(self, forwards: Forwards) -> float:
        """Forwards of a request alone."""
        return self._warmth.drafted_s(self._durations.of(forwards)) if forwards.num_forwards else 0.0

    def _prefill_s(self, actor: Actor, chunks: list[Chunk]) -> float:
        return sum(
            self._latency.mean_s(OpShape(actor, OpKind.PREFILL, chunk.num_tokens, 1, chunk.context_tokens))
            for chunk in chunks
            if chunk.num_tokens
        )

    def _together_s(self, kind: OpKind, num_tokens: Ints, num_branches: Ints | int, contexts: Ints) -> float:
        """One forward of several requests; see the head of this class."""
        mean = self._latency.mean_array
        rows = int(np.sum(num_branches)) if kind == OpKind.BRANCH else 1
        together = mean(kind, int(num_tokens.sum()) if rows == 1 else 1, rows, 0)
        over_contexts = mean(kind, num_tokens, num_branches, contexts) - mean(kind, num_tokens, num_branches, 0)
        return float(together) + float(over_contexts.sum())


def _details_of(plan: StepPlan) -> Details:
    """Rounds of one length in the words of rounds that differ; after an emitted token the draft lacks one."""
    rounds = plan.rounds
    assert rounds is not None
    ones = np.ones_like(plan.contexts)
    lengths, zeros = ones * rounds.draft_length, ones * 0
    return Details(lengths, ones, zeros, lengths, zeros, zeros, zeros)

"""A cluster: clients send a workload, a router spreads it over replicas, and simulated time passes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import simpy

from sim.devices import Fifo
from sim.serving.book import Book, Floats, Gaps, ReplicaTotals
from sim.serving.costs import Costs
from sim.serving.prefixes import PrefixCache
from sim.serving.replica import Replica, StepRecord
from sim.serving.rounds.base import Ints, RoundSource
from sim.serving.settings import Placement, Server
from traces.workload import Workload

Process: TypeAlias = Generator[Any, Any, None]


class Router(enum.StrEnum):
    """Which replica a request goes to; ties go to the first one."""

    ROUND_ROBIN = "round_robin"
    LEAST_OUTSTANDING_TOKENS = "least_outstanding_tokens"
    PREFIX_AWARE = "prefix_aware"  # where most of the prompt's blocks have been; then as least outstanding


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedRun:
    """A workload as it was served; times are seconds, arrays (requests,).

    sent_s, first_s, last_s: when a request left its client, got its first and its last token; NaN if the run ended before.
    in_system_s: requests in the system, summed over time. end_s: when the last token came.
    """

    sent_s: Floats
    first_s: Floats
    last_s: Floats
    num_output: Ints
    gaps: Gaps
    replicas: list[ReplicaTotals]
    in_system_s: float
    max_in_system: int
    end_s: float

    @property
    def num_finished(self) -> int:
        """Requests that got their last token."""
        return int((self.last_s == self.last_s).sum())


def serve(
    workload: Workload,
    server: Server,
    costs: Callable[[], Costs],
    source: Callable[[], RoundSource],
    *,
    num_replicas: int = 1,
    placement: Placement = Placement.IN_TURN,
    router: Router = Router.LEAST_OUTSTANDING_TOKENS,
    until_s: float | None = None,
    on_step: Callable[[int, StepRecord], None] | None = None,
) -> ServedRun:
    """Serve a workload in simulated time.

    costs, source: give each replica its own. until_s: stop then, finished or not. on_step: called with the replica and
    each of its steps. Same arguments, same result to the last bit. Raises ValueError for less than one replica and for a
    request that does not fit the memory.
    """
    if num_replicas < 1:
        raise ValueError(f"num_replicas must be at least 1, but got {num_replicas}.")
    env = simpy.Environment()
    book = Book(env, workload.num_requests)
    shared_draft = Fifo(env, "sim:draft") if placement is Placement.SHARED_DRAFT else None
    replicas = []
    for index in range(num_replicas):
        target = Fifo(env, f"sim:target-{index}")
        draft = target if placement is Placement.IN_TURN else shared_draft or Fifo(env, f"sim:draft-{index}")
        replicas.append(
            Replica(
                env,
                server,
                costs(),
                source(),
                target=target,
                draft=draft,
                book=book,
                prompt_tokens=workload.prompt_tokens,
                output_tokens=workload.output_tokens,
                prefixes=_prefixes(workload, server),
                on_step=None if on_step is None else _with_replica(on_step, index),
            )
        )
    clients = _Clients(env, workload, book, _route(router, replicas, workload), server.client_s)
    env.process(clients.run())
    env.run(until=until_s)
    run = ServedRun(
        sent_s=book.sent_s,
        first_s=book.first_s,
        last_s=book.last_s,
        num_output=book.num_output,
        gaps=book.gaps,
        replicas=[replica.totals for replica in replicas],
        in_system_s=book.in_system_s,
        max_in_system=book.max_in_system,
        end_s=env.now,
    )
    if until_s is None:
        check_conservation(run)
    return run


def _prefixes(workload: Workload, server: Server) -> PrefixCache | None:
    """A replica's cache of prompts' beginnings, as large as its memory."""
    if not server.prefix_caching:
        return None
    if workload.prefix_blocks is None:
        raise ValueError("prefix_caching needs a workload with the blocks of its prompts (Mooncake's hash_ids).")
    capacity = 1 << 40 if server.kv_tokens is None else server.kv_tokens // workload.prefix_block_tokens
    return PrefixCache(workload.prefix_blocks, workload.prefix_block_tokens, capacity)


def check_conservation(run: ServedRun) -> None:
    """What holds of every run that came to its end: each request is served once, no token is lost or made, Little's law."""
    num_given = sum(totals.num_emitted + totals.num_first for totals in run.replicas)
    assert run.num_finished == len(run.last_s), f"{len(run.last_s) - run.num_finished} requests were never finished"
    assert num_given == run.num_output.sum(), f"{num_given} tokens were given, {run.num_output.sum()} received"
    stays_s = float((run.last_s - run.sent_s).sum())
    assert abs(stays_s - run.in_system_s) <= 1e-6 * max(stays_s, 1e-9), "Little's law is broken"
    assert bool((run.sent_s <= run.first_s).all() and (run.first_s <= run.last_s).all()), "a token came before its time"


class _Clients:
    """Sends requests when they are ready, as many at once as the workload allows; the others wait in their order."""

    def __init__(
        self, env: simpy.Environment, workload: Workload, book: Book, route: Callable[[int], Replica], client_s: float
    ) -> None:
        self._env, self._workload, self._book, self._route, self._client_s = env, workload, book, route, client_s
        self._limit = workload.max_concurrency or workload.num_requests
        self._is_full: simpy.Event | None = None
        if workload.max_concurrency is not None:
            book.on_finish = self._on_finish

    def run(self) -> Process:
        env, book = self._env, self._book
        for request, ready_s in enumerate(self._workload.arrival_s.tolist()):
            if ready_s > env.now:
                yield env.timeout(ready_s - env.now)
            while book.num_in_system >= self._limit:
                self._is_full = env.event()
                yield self._is_full
            book.send(request)
            if self._client_s:
                env.timeout(self._client_s, request).callbacks.append(self._on_sent)
            else:
                self._route(request).submit(request)

    def _on_sent(self, event: Any) -> None:
        self._route(event.value).submit(event.value)

    def _on_finish(self, request: int) -> None:
        if self._is_full is not None:
            self._is_full.succeed()
            self._is_full = None


def _with_replica(on_step: Callable[[int, StepRecord], None], index: int) -> Callable[[StepRecord], None]:
    return lambda record: on_step(index, record)


def _route(router: Router, replicas: Sequence[Replica], workload: Workload) -> Callable[[int], Replica]:
    """The router's choice for each request, in the order in which they are sent."""
    if len(replicas) == 1:
        return lambda request: replicas[0]
    if router is Router.ROUND_ROBIN:
        turn = iter(range(1 << 62))
        return lambda request: replicas[next(turn) % len(replicas)]

    def least(request: int) -> Replica:
        return min(replicas, key=lambda replica: replica.outstanding_tokens)

    if router is Router.LEAST_OUTSTANDING_TOKENS:
        return least
    blocks = workload.prefix_blocks
    if blocks is None:
        raise ValueError("a prefix-aware router needs a workload with the blocks of its prompts (Mooncake's hash_ids).")
    seen: list[set[int]] = [set() for _ in replicas]

    def prefix_aware(request: int) -> Replica:
        def known(index: int) -> int:
            """Leading blocks of the prompt that this replica has read before."""
            count = 0
            for block in blocks[request]:
                if block not in seen[index]:
                    break
                count += 1
            return count

        index = min(range(len(replicas)), key=lambda index: (-known(index), replicas[index].outstanding_tokens))
        seen[index].update(blocks[request])
        return replicas[index]

    return prefix_aware

"""A step machine for every request, asked round by round: for policies that read the server's load."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from sim.decoding.ledger import Ledger
from sim.decoding.machine import Close, Command, Reply, decode
from sim.decoding.policies.base import Load, Policy
from sim.decoding.replay import TraceWorld
from sim.serving.rounds.base import Ints, Rounds, ServerLoad, details_of
from traces.schema import RequestTrace


class MachineRounds:
    """Requests with a machine each: request i decodes trace i modulo their number, under policy i modulo theirs.

    An output longer than its trace goes on with the next one, on a new machine. max_pending: the most tokens that any of the
    policies may submit, for the memory's sake. takes_traces_lengths: as in `PlannedRounds`.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        traces: Sequence[RequestTrace],
        *,
        max_pending: int,
        takes_traces_lengths: bool = False,
    ) -> None:
        self._policies, self._traces = policies, traces
        self._takes_traces_lengths = takes_traces_lengths
        self.max_pending = max_pending
        self._machines: list[_Machine] = []
        self._free: list[int] = []

    def begin(self, request: int) -> int:
        policy = self._policies[request % len(self._policies)]
        machine = _Machine(policy, self._traces, request % len(self._traces))
        if self._free:
            place = self._free.pop()
            self._machines[place] = machine
        else:
            place = len(self._machines)
            self._machines.append(machine)
        return place

    def num_output_tokens(self, request: int, wanted: int) -> int:
        return self._traces[request % len(self._traces)].num_tokens if self._takes_traces_lengths else wanted

    def after_first_token(self, place: int) -> int:
        return place

    def next(self, places: Ints, left: Ints, load: ServerLoad) -> Rounds:
        """See `RoundSource.next`."""
        seen = Load(load.num_running, load.num_waiting, load.kv_share)
        ledgers = np.array([self._machines[place].next(seen) for place in places.tolist()], dtype=np.int64)
        columns = dict(zip(Ledger._fields, ledgers.T, strict=True))
        details = details_of(columns)
        emitted = np.minimum(columns["num_emitted"], left)
        self._free.extend(places[emitted == left].tolist())
        return Rounds(emitted, np.zeros_like(emitted), int(details.num_pending.sum()), details=details)


class _Machine:
    """One request's machine, and the trace that answers it."""

    def __init__(self, policy: Policy, traces: Sequence[RequestTrace], trace: int) -> None:
        self._policy, self._traces, self._trace = policy, traces, trace
        self._commands: Generator[Command, Reply, Any] | None = None

    def next(self, load: Load) -> Ledger:
        """The ledger of the next round, which begins at this load."""
        if self._commands is None:
            trace = self._traces[self._trace]
            self._world = TraceWorld(trace, self._policy.needs)
            self._commands = decode(
                self._policy,
                request_id=trace.request_id,
                max_new_tokens=trace.max_new_tokens,
                num_prompt_tokens=trace.num_prompt_tokens,
                class_probs=self._world.first_classes,
                load=load,
            )
            command = next(self._commands)
        else:
            command = self._commands.send(load)
        while not isinstance(command, Close):
            command = self._commands.send(self._world.answer(command))
        if command.round.is_finished:
            self._commands = None
            self._trace = (self._trace + 1) % len(self._traces)
        return command.ledger

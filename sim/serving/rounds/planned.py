"""Rounds planned ahead: what a policy does on a recorded trace does not hang on time, so it is worked out before the run.

The lockstep replay (or the step machine) gives the rounds of every (policy, trace) once; a request then walks along its
plan, round by round, while the simulator spends the time. Policies that read the server's load cannot be planned; they
keep a step machine each (`sim.serving.rounds.machines`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.decoding.policies.base import Policy
from sim.decoding.replay import check_answers, closed_rounds
from sim.serving.rounds.base import Details, Ints, Rounds, ServerLoad, details_of
from sim.sweep.lockstep import RoundArrays, TraceArrays, step_all
from sim.sweep.rules import ARRAY_RULES
from sim.sweep.sweep import lanes_of, round_arrays
from traces.schema import RequestTrace

_NUM_DETAILS = len(Details._fields)
_EMITTED, _STEP = _NUM_DETAILS, _NUM_DETAILS + 1


class Plan:
    """The rounds of policies on traces, behind one another.

    table: (details and tokens and steps, rounds). firsts: (policies, traces) the first round of each.
    num_tokens: (traces,) that a trace emits.
    """

    def __init__(self, policies: Sequence[Policy], traces: Sequence[RequestTrace]) -> None:
        rounds = _rounds_of(policies, traces)
        details = details_of(rounds._asdict())
        changes = np.flatnonzero(np.diff(rounds.lane, prepend=-1))
        self.firsts: Ints = changes.reshape(len(policies), len(traces))
        # After the last round of a trace a longer output goes on with the next trace of its policy.
        following = np.roll(self.firsts, -1, axis=1).ravel()
        steps = np.ones(len(rounds.lane), dtype=np.int64)
        lasts = np.append(changes[1:], len(rounds.lane)) - 1
        steps[lasts] = following - lasts
        self.table: Ints = np.stack([*details, rounds.num_emitted, steps])
        self.num_tokens: Ints = np.array([trace.num_tokens for trace in traces])
        self.max_pending = int(rounds.num_pending.max(initial=0))


class PlannedRounds:
    """Requests on a plan: request i walks along trace i modulo their number, under policy i modulo theirs.

    takes_traces_lengths: a request emits what its trace holds, instead of what the workload wants.
    """

    def __init__(self, plan: Plan, *, takes_traces_lengths: bool = False) -> None:
        self._plan, self._takes_traces_lengths = plan, takes_traces_lengths
        self.max_pending = plan.max_pending

    def begin(self, request: int) -> int:
        num_policies, num_traces = self._plan.firsts.shape
        return int(self._plan.firsts[request % num_policies, request % num_traces])

    def num_output_tokens(self, request: int, wanted: int) -> int:
        return (
            int(self._plan.num_tokens[request % len(self._plan.num_tokens)]) if self._takes_traces_lengths else wanted
        )

    def after_first_token(self, place: int) -> int:
        return place  # the plan begins after the first token then

    def next(self, places: Ints, left: Ints, load: ServerLoad) -> Rounds:
        """See `RoundSource.next`."""
        columns = self._plan.table.take(places, axis=1)
        details = Details(*columns[:_NUM_DETAILS])
        emitted = np.minimum(columns[_EMITTED], left)
        num_pending = int(np.add.reduce(details.num_pending))
        return Rounds(emitted, columns[_STEP], num_pending, details=details)


def _rounds_of(policies: Sequence[Policy], traces: Sequence[RequestTrace]) -> RoundArrays:
    """The rounds of all policies on all traces, policy major, in the order of positions."""
    arrays = TraceArrays(traces)
    collected: list[RoundArrays] = []
    for index, policy in enumerate(policies):
        if type(policy) in ARRAY_RULES:
            rule = ARRAY_RULES[type(policy)]([policy], arrays)
            for trace in traces:
                check_answers(trace, policy.needs)
            step_all(rule, lanes_of([index], arrays), arrays, collected.append)
        else:
            for request, trace in enumerate(traces):
                lane = index * len(traces) + request
                collected.append(round_arrays(closed_rounds(policy, trace), lane, int(arrays.starts[request])))
    columns = [np.concatenate(column) for column in zip(*collected, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return RoundArrays(*(column[order] for column in columns))

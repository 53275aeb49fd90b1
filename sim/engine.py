"""The SimPy engine: requests run their step machine on two devices, and simulated time passes.

The reference for every other way to a time. One request is one process; a device serves its jobs in order of arrival.
The target's verification runs while the process goes on drafting; the round settles when both are done.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import simpy

from sim.decoding.draft_cache import DraftCache, Forwards, host, prefill
from sim.decoding.machine import Branch, Close, DraftTokens, Keep, Reply, Settle, Settled, Submit, decode
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import POLICIES, label_of
from sim.decoding.replay import TraceWorld
from sim.durations import DrawnDurations, Durations, MeanDurations
from sim.latency.base import Conditions, LatencyModel
from traces.fits.cold_start import ColdStart
from traces.metrics.counts import Summary, summarise_rounds
from traces.schema import Op, RequestRecord, RequestTrace, Round, RoundTimes

Event: TypeAlias = Any  # simpy ships without types for its events' values
Process: TypeAlias = Generator[Event, Any, None]


@dataclass(frozen=True)
class SimulatedRun:
    """What a run folder holds, before it is written. Rounds and operations are in the order of their ends."""

    rounds: list[tuple[Round, RoundTimes]] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


class Device:
    """One model's device: a queue served first come, first served.

    A job's length is known when it is queued, so its end is known too: no resource has to be held, and whoever needs the
    result waits until then. Jobs queued at one instant run in the order of the calls. (A test holds this equal to
    `simpy.Resource`.)
    """

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name = name
        self.starts_at_s = self.free_at_s = 0.0  # of the job queued last
        self._env = env

    def work(self, duration_s: float) -> float:
        """Queue a job; gives the time at which it will be done."""
        now = self._env.now
        self.starts_at_s = start_s = self.free_at_s if self.free_at_s > now else now
        self.free_at_s = end_s = start_s + duration_s
        return end_s


def simulate(
    policy: Policy,
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    rng: np.random.Generator | None = None,
    num_streams: int = 1,
    same_device: bool = False,
    record_ops: bool = True,
    label: str | None = None,
) -> SimulatedRun:
    """Decode recorded requests under `policy`, in simulated time.

    rng:         draws operation times; None takes their means. Every request gets its own spawned generators.
    num_streams: requests decoded at once (each stream takes the next request when it is done); they share the devices.
    same_device: draft and target share one device, so that nothing overlaps.
    record_ops:  whether to write down every operation; the times are the same without.
    label:       the policy's name in the records; that of the catalog by default.
    """
    if num_streams < 1:
        raise ValueError(f"num_streams must be at least 1, but got {num_streams}.")
    latency = latency.under(Conditions.of(policy, same_device=same_device))
    env = simpy.Environment()
    target = Device(env, "sim:target" if not same_device else "sim:shared")
    draft = Device(env, "sim:draft") if not same_device else target
    longest = max((trace.num_prompt_tokens + trace.num_tokens for trace in traces), default=0)
    means = MeanDurations(latency, longest) if rng is None else None
    rngs = rng.spawn(len(traces)) if rng is not None else []
    run = SimulatedRun()
    name = _label_of(policy) if label is None else label
    stage = _Stage(env, policy, draft, target, run, record_ops, name, latency.cold_start, same_device)

    def durations_of(index: int) -> Durations:
        return means if means is not None else DrawnDurations(latency, rngs[index])

    def stream(waiting: Iterator[tuple[int, RequestTrace]]) -> Process:
        for index, trace in waiting:
            yield from stage.serve(trace, durations_of(index))

    waiting = iter(enumerate(traces))
    for _ in range(num_streams):
        env.process(stream(waiting))
    env.run()
    return run


def summarise(run: SimulatedRun) -> Summary:
    """Metrics of a simulated run, computed as for a real one."""
    return summarise_rounds(run.rounds, run.requests)


@dataclass(frozen=True)
class _Stage:
    """What all requests of a run share."""

    env: simpy.Environment
    policy: Policy
    draft: Device
    target: Device
    run: SimulatedRun
    record_ops: bool
    label: str
    cold_start: ColdStart
    takes_turns: bool

    def serve(self, trace: RequestTrace, durations: Durations) -> Process:
        """One request, from its prefill to its last token."""
        env, draft, target = self.env, self.draft, self.target
        note = self._note if self.record_ops else None
        arrival_s = ready_s = env.now
        for device, actor in ((draft, "draft"), (target, "target")):  # at the same time; both must be done
            forwards = prefill(actor, trace.num_prompt_tokens)
            times = durations.of(forwards)
            ready_s = max(ready_s, device.work(sum(times)))
            if note:
                note(trace, -1, device.name, device.starts_at_s, forwards, times)
        yield env.timeout(ready_s - arrival_s)

        world, cache = TraceWorld(trace, self.policy.needs), DraftCache(trace.num_prompt_tokens)
        machine = decode(
            self.policy,
            request_id=trace.request_id,
            max_new_tokens=trace.max_new_tokens,
            class_probs=world.first_classes,
        )
        reply: Reply = None
        start_s = env.now
        first_token_s: float | None = None
        draft_s = verify_s = ahead_s = verified_s = 0.0
        index = num_forwards = 0
        cold_start, waking_s = self.cold_start, self.cold_start.first_s  # before round 0 the target's prompt has passed
        while True:
            try:
                command = machine.send(reply)
            except StopIteration:
                break
            if isinstance(command, Close):
                closed, reply = command.round, None
                assert num_forwards == closed.num_draft_forwards, (
                    f"round {index} of request {trace.request_id} ran {num_forwards} draft forwards, "
                    f"but the step machine counted {closed.num_draft_forwards}."
                )
                # Wait for the verdict and for the host's own work at once: nothing happens in between.
                forwards = host(closed.num_pending, closed.num_branches, cache.num_sequence - closed.num_emitted)
                times = durations.of(forwards)
                now = env.now
                settled_s = verified_s if verified_s > now else now
                if note and times[0] > 0:
                    note(trace, index, "sim:host", settled_s, forwards, times)
                yield env.timeout(settled_s + times[0] - now)
                end_s = env.now
                self.run.rounds.append((closed, RoundTimes(start_s, end_s, draft_s, verify_s)))
                if first_token_s is None:
                    first_token_s = end_s
                if cold_start.first_s:
                    wait_s = verify_s if self.takes_turns else verify_s - ahead_s
                    waking_s = cold_start.waking_s(wait_s, num_forwards)
                start_s = end_s
                draft_s, num_forwards, index = 0.0, 0, index + 1
                continue
            reply = world.answer(command)
            if isinstance(command, Settle):
                assert isinstance(reply, Settled)
                cache.settle(reply.num_accepted, reply.num_emitted, reply.is_hit)
            elif isinstance(command, Submit):
                forwards = cache.submit(command.num_pending)
                times = durations.of(forwards)
                verify_s, ahead_s = times[0], 0.0
                verified_s = target.work(verify_s)
                if note:
                    note(trace, index, target.name, target.starts_at_s, forwards, times)
            elif isinstance(command, Keep):
                cache.keep(command.num_kept)
            else:
                if isinstance(command, DraftTokens):
                    forwards = cache.draft(command.num_tokens)
                elif isinstance(command, Branch):
                    forwards = cache.branch(sum(command.fanout), command.num_steps)
                else:
                    forwards = cache.look()
                if forwards.num_forwards:
                    times = durations.of(forwards)
                    spent_s = sum(times)
                    ahead_s += spent_s
                    if waking_s:
                        for ordinal in range(len(times)):
                            times[ordinal] += waking_s
                            spent_s += waking_s
                            waking_s *= cold_start.decay
                    draft_s += spent_s
                    num_forwards += forwards.num_forwards
                    done_s = draft.work(spent_s)
                    if note:
                        note(trace, index, draft.name, draft.starts_at_s, forwards, times)
                    yield env.timeout(done_s - env.now)
        assert first_token_s is not None, f"request {trace.request_id} ended without a round."
        self.run.requests.append(_request_record(trace, self.label, arrival_s, first_token_s, env.now))

    def _note(
        self,
        trace: RequestTrace,
        index: int,
        device: str,
        start_s: float,
        forwards: Forwards,
        seconds: Sequence[float],
    ) -> None:
        """Write down forwards that run one after another on a device."""
        actor, kind, _, num_tokens, num_branches, context = forwards
        end_s = start_s
        for duration_s in seconds:
            start_s, end_s = end_s, end_s + duration_s
            self.run.ops.append(
                Op(
                    request_id=trace.request_id,
                    round=index,
                    actor=actor,
                    device=device,
                    kind=kind,
                    start_s=start_s,
                    end_s=end_s,
                    num_tokens=num_tokens,
                    batch=1,
                    num_branches=num_branches,
                    context_tokens=context,
                )
            )
            context, num_tokens = context + num_tokens, 1


def _label_of(policy: Policy) -> str:
    """The catalog's label; the repr of a policy that is not listed there."""
    return label_of(policy) if type(policy) in POLICIES.values() else repr(policy)


def _request_record(
    trace: RequestTrace, label: str, arrival_s: float, first_token_s: float, finish_s: float
) -> RequestRecord:
    """The record of a simulated request; tokens have no ids here, so there is nothing to hash."""
    return RequestRecord(
        request_id=trace.request_id,
        prompt_id=trace.prompt_id,
        policy=label,
        repeat=0,
        temperature=trace.temperature,
        top_k=0,
        top_p=1.0,
        seed=0,
        noise_key=0,
        arrival_s=arrival_s,
        first_token_s=first_token_s,
        finish_s=finish_s,
        num_prompt_tokens=trace.num_prompt_tokens,
        num_output_tokens=trace.num_tokens,
        max_new_tokens=trace.max_new_tokens,
        finish_reason=trace.finish_reason.value,
        tokens_sha256="",
        is_clean=True,
    )

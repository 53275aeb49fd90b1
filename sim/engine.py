"""The SimPy engine: requests run their step machine on two devices, and simulated time passes.

The reference for every other way to a time. One request is one process; devices say when their jobs are done. The
target's verification runs while the process goes on drafting; the round settles when both are done.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import simpy

from sim.decoding.draft_cache import Forwards, host, prefill
from sim.decoding.machine import Branch, Close, Submit
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import POLICIES, label_of
from sim.decoding.replay import drive_trace
from sim.devices import Device, Fifo, Job, Lane, SharedDevices
from sim.durations import DrawnDurations, Durations, MeanDurations, Warmth
from sim.latency.base import AHEAD, FURTHER, Conditions, LatencyModel
from traces.fits.interference import Interference
from traces.metrics.counts import Summary, summarise_rounds
from traces.schema import Actor, Op, OpKind, RequestRecord, RequestTrace, Round, RoundTimes, op_of

Process: TypeAlias = Generator[Any, Any, None]


@dataclass(frozen=True)
class SimulatedRun:
    """What a run folder holds, before it is written. Rounds and operations are in the order of their ends."""

    rounds: list[tuple[Round, RoundTimes]] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


def simulate(
    policy: Policy,
    traces: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    rng: np.random.Generator | None = None,
    num_streams: int = 1,
    takes_turns: bool = False,
    interference: Interference | None = None,
    record_ops: bool = True,
    label: str | None = None,
) -> SimulatedRun:
    """Decode recorded requests under `policy`, in simulated time.

    rng:          draws operation times; None takes their means. Every request gets its own spawned generators.
    num_streams:  requests decoded at once (each stream takes the next request when it is done); they share the devices.
    takes_turns:  draft and target share one device that runs one of them at a time, so that nothing overlaps.
    interference: of a device that both share and run on at once (`Interference.of`); None: they are on a device each, and
                  slow each other down as the latency model says.
    record_ops:   whether to write down every operation; the times are the same without.
    label:        the policy's name in the records; that of the catalog by default.
    Raises ValueError for less than one stream, and where the traces cannot answer the policy's questions.
    """
    if num_streams < 1:
        raise ValueError(f"num_streams must be at least 1, but got {num_streams}.")
    if takes_turns and interference is not None:
        raise ValueError("models that take turns do not interfere; give takes_turns or interference.")
    latency = latency.under(Conditions.of(policy))
    env = simpy.Environment()
    draft, target = _devices(env, takes_turns, interference, latency.interference)
    rates = Interference() if takes_turns else interference or latency.interference
    longest = max((trace.num_prompt_tokens + trace.num_tokens for trace in traces), default=0)
    means = MeanDurations(latency, longest) if rng is None else None
    rngs = rng.spawn(len(traces)) if rng is not None else []
    run = SimulatedRun()
    name = _label_of(policy) if label is None else label
    stage = _Stage(env, policy, draft, target, latency, rates, takes_turns, run, record_ops, name)

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


def _devices(
    env: simpy.Environment, takes_turns: bool, shared: Interference | None, apart: Interference
) -> tuple[Device, Device]:
    """The draft's and the target's. shared, apart: interference on one device, and between two."""
    if takes_turns:
        both = Fifo(env, "sim:shared")
        return both, both
    names = ("sim:draft", "sim:target") if shared is None else ("sim:shared", "sim:shared")
    interference = apart if shared is None else shared
    if shared is None and apart.is_none:
        return Fifo(env, names[0]), Fifo(env, names[1])
    lanes = SharedDevices(env, interference, names)
    return lanes.draft, lanes.target


def summarise(run: SimulatedRun) -> Summary:
    """Metrics of a simulated run, computed as for a real one."""
    return summarise_rounds(run.rounds, run.requests)


@dataclass(frozen=True)
class _Stage:
    """What all requests share. latency: as the policy meets it. interference: none where the models take turns."""

    env: simpy.Environment
    policy: Policy
    draft: Device
    target: Device
    latency: LatencyModel
    interference: Interference
    takes_turns: bool
    run: SimulatedRun
    record_ops: bool
    label: str

    def serve(self, trace: RequestTrace, durations: Durations) -> Process:
        """One request, from its prefill to its last token."""
        env, rounds = self.env, self.run.rounds
        arrival_s = env.now
        work = _Work(self, trace.request_id, durations)
        for job in work.prefill(trace.num_prompt_tokens):
            yield job.done
        work.close_round(-1)
        first_token_s = start_s = env.now
        num_before = trace.num_prompt_tokens  # of round 0
        for command in drive_trace(self.policy, trace, work.steps_of):
            if type(command) is Submit:
                work.verify(command.forwards)
            elif type(command) is Close:
                round_ = command.round
                if work.verification.end_s is None:
                    yield work.verification.done
                forwards = host(round_.num_pending, round_.num_branches, num_before + round_.position)
                yield simpy.Timeout(env, work.settle_s(forwards))
                end_s = env.now
                rounds.append((round_, RoundTimes(start_s, end_s, *work.busy_s())))
                if round_.round == 0:
                    first_token_s = end_s
                start_s = end_s
                work.close_round(round_.round)
            elif command.forwards.num_forwards:
                yield work.draft(command.forwards).done
        self.run.requests.append(_request_record(trace, self.label, arrival_s, first_token_s, env.now))


class _Work:
    """What the devices do for one request in the round under way: the seconds of each side, cold starts included.

    verification: the target's job. Operations are written down when the round is over.
    """

    verification: Job

    def __init__(self, stage: _Stage, request_id: int, durations: Durations) -> None:
        self._stage, self._request_id = stage, request_id
        cold_start = stage.latency.cold_start
        self._warmth = Warmth(cold_start, takes_turns=stage.takes_turns) if cold_start.first_s else None
        self._records = stage.record_ops
        self._shares = isinstance(stage.draft, Lane)  # whether the models slow each other down
        self._seconds_of, self._submit_draft = durations.of, stage.draft.submit
        self._jobs: list[tuple[Job, Forwards, list[float]]] = []
        self._planned: list[float] | None = None  # of the branch under way, where its steps hang on time
        self._drafting: list[Job] = []  # on a lane, of the round under way
        self._draft_s = self._verify_s = 0.0  # of the round's work, were each model alone
        self._verified_s = 0.0  # of the verification, done while the draft worked ahead, if it took so long
        self._width = 1

    def prefill(self, num_prompt_tokens: int) -> list[Job]:
        """Both models' prompts, at the same time."""
        jobs = []
        for device, actor in ((self._stage.draft, Actor.DRAFT), (self._stage.target, Actor.TARGET)):
            forwards = prefill(actor, num_prompt_tokens)
            times = self._seconds_of(forwards)
            jobs.append(device.submit(sum(times), 0))
            if self._records:
                self._jobs.append((jobs[-1], forwards, times))
        return jobs

    def verify(self, forwards: Forwards) -> None:
        """The target starts; what the draft does from here on is ahead of the verdict."""
        times = self._seconds_of(forwards)
        self._verify_s, self._verified_s, self._width = times[0], 0.0, forwards.first_tokens
        if self._warmth is not None:
            self._warmth.verify(times[0])
        self.verification = job = self._stage.target.submit(times[0], forwards.first_tokens)
        if self._records:
            self._jobs.append((job, forwards, times))

    def steps_of(self, command: Branch) -> int:
        """How far a free-running draft goes: a further step begins as long as the verdict has not come.

        Where nobody knows yet when that will be, the paces of both tell how far the target gets meanwhile.
        """
        times = self._seconds_of(command.forwards)
        spent_s = times if self._warmth is None else self._warmth.woken(times)
        end_s = self.verification.end_s
        if end_s is None:
            left_s = (self._verify_s - self._verified_s) / self._progress(command.forwards.num_branches)
        else:
            left_s = end_s - self._stage.env.now
        if self._stage.takes_turns:
            left_s = 0.0  # the draft begins when the verdict is there
        steps, begins_s = command.num_steps, sum(spent_s[: command.num_steps])
        while steps < len(times) and begins_s < left_s:
            begins_s += spent_s[steps]
            steps += 1
        self._planned = times[:steps] if times else None  # without a forward nothing follows
        return steps

    def draft(self, forwards: Forwards) -> Job:
        """Forwards of the draft, the first ones slower after a wait."""
        if self._planned is None:
            times = self._seconds_of(forwards)
        else:
            times, self._planned = self._planned, None
            forwards = forwards._replace(num_forwards=len(times))
        spent_s = sum(times) if self._warmth is None else self._warmth.drafted_s(times)
        self._draft_s += spent_s
        job = self._submit_draft(spent_s, forwards.num_branches)
        if self._shares:
            self._verified_s += spent_s * self._progress(forwards.num_branches)
            self._drafting.append(job)
        if self._records:
            self._jobs.append((job, forwards, times))
        return job

    def _progress(self, num_rows: int) -> float:
        """Seconds of the verification's work done during one of the draft's, while both work."""
        target, draft = self._stage.interference.paces(self._width, num_rows)
        return float(target / draft)

    def busy_s(self) -> tuple[float, float]:
        """Seconds that the draft and the target worked on the round."""
        if not self._shares:
            return self._draft_s, self._verify_s
        draft, target = (
            sum((job.end_s or 0.0) - job.start_s for job in jobs) for jobs in (self._drafting, [self.verification])
        )
        return draft, target

    def settle_s(self, forwards: Forwards) -> float:
        """Seconds until the round is over: the verdict, whose time is known, and then the host's own work, at once."""
        now, settled_s = self._stage.env.now, self.verification.end_s
        assert settled_s is not None, "the verdict is waited for where its time is not known"
        settled_s = settled_s if settled_s > now else now
        times = self._seconds_of(forwards)
        host_s = times[0]
        if host_s > 0 and self._records:
            self._jobs.append((Job(self._stage.env, settled_s, settled_s + host_s), forwards, times))
        wait_s: float = settled_s + host_s - now
        return wait_s

    def close_round(self, index: int) -> None:
        """After a round, or after the prefill: write it down, and see how cold the draft has become meanwhile."""
        if self._records:
            self._write_down(index)
            self._jobs.clear()
        if index >= 0 and self._warmth is not None:
            self._warmth.close_round()
        self._draft_s = 0.0
        if self._shares:
            self._drafting.clear()

    def _write_down(self, index: int) -> None:
        """The round's operations, in the order in which they were submitted."""
        stage = self._stage
        is_overlapped = not stage.takes_turns and any(forwards.kind in AHEAD for _, forwards, _ in self._jobs)
        devices = {Actor.DRAFT: stage.draft.name, Actor.TARGET: stage.target.name, Actor.HOST: "sim:host"}
        for job, forwards, times in self._jobs:
            assert job.end_s is not None, "operations are written down when they are over"
            planned_s = sum(times)
            stretch = (job.end_s - job.start_s) / planned_s if self._shares and planned_s else 1.0
            is_beside = is_overlapped and (forwards.kind in AHEAD or forwards.kind == OpKind.VERIFY)
            end_s = job.start_s
            for shape, seconds in zip(forwards.shapes(), times, strict=True):
                start_s, end_s = end_s, end_s + seconds * stretch
                middle_s = end_s - stage.latency.further_s(shape) * stretch
                parts = [(shape, start_s, middle_s)]
                if middle_s < end_s:
                    parts.append((shape._replace(kind=FURTHER[shape.kind]), middle_s, end_s))
                stage.run.ops.extend(
                    op_of(self._request_id, index, devices[part.actor], part, from_s, to_s, is_beside=is_beside)
                    for part, from_s, to_s in parts
                )


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

"""Devices: a queue is a SimPy resource, and a shared device follows its two lanes step by step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.devices import Device, Fifo, SharedDevice
from sim.engine import simulate
from sim.latency.base import Conditions
from sim.latency.constant import ConstantLatency
from sim.latency.placement import Placement, PlacementKind
from sim.sweep.placed_timer import PlacedTimer
from sim.sweep.sweep import sweep
from traces.schema import RequestTrace

TEXTBOOK = ConstantLatency(draft_s=0.2, verify_s=1.0, host_s=0.05, draft_prefill_s=0.3, target_prefill_s=2.0)


@settings(max_examples=50, deadline=None)
@given(jobs=st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=12))
def test_a_fifo_is_a_simpy_resource_also_when_jobs_come_at_one_instant(jobs: list[tuple[int, list[int]]]) -> None:
    def with_device(env: simpy.Environment, device: Device, index: int, ends: dict[int, float]) -> Generator[Any]:
        yield env.timeout(jobs[index][0])
        yield device.submit(float(sum(jobs[index][1]))).done
        ends[index] = env.now

    def with_resource(env: simpy.Environment, resource: Any, index: int, ends: dict[int, float]) -> Generator[Any]:
        yield env.timeout(jobs[index][0])
        with resource.request() as turn:
            yield turn
            for length in jobs[index][1]:
                yield env.timeout(length)
        ends[index] = env.now

    ends_of: list[dict[int, float]] = [{}, {}]
    for run, ends in zip((with_device, with_resource), ends_of, strict=True):
        env = simpy.Environment()
        server: Any = Fifo(env, "d") if run is with_device else simpy.Resource(env)
        for index in range(len(jobs)):
            env.process(run(env, server, index, ends))
        env.run()
    assert ends_of[0] == ends_of[1]


def ends_on_shared(jobs: list[tuple[int, float, float]], interference: float) -> list[float]:
    """When each job (lane, arrival, work) of a shared device ends."""
    env = simpy.Environment()
    shared = SharedDevice(env, "d", interference)
    lanes = [shared.lane(), shared.lane()]
    ends = [0.0] * len(jobs)

    def run(index: int) -> Generator[Any]:
        lane, arrival, work = jobs[index]
        yield env.timeout(arrival)
        yield lanes[lane].submit(work).done
        ends[index] = env.now

    for index in range(len(jobs)):
        env.process(run(index))
    env.run()
    return ends


def ends_by_small_steps(jobs: list[tuple[int, float, float]], interference: float, step: float) -> list[float]:
    """The same by brute force: both first jobs progress a little, more slowly while there are two."""
    left = [work for _, _, work in jobs]
    ends = [0.0] * len(jobs)
    now = 0.0
    while any(value > 0 for value in left):
        firsts = []
        for lane in (0, 1):
            waiting = [
                i for i, (where, arrival, _) in enumerate(jobs) if where == lane and arrival <= now and left[i] > 0
            ]
            firsts += sorted(waiting, key=lambda i: (jobs[i][1], i))[:1]
        for index in firsts:
            left[index] -= step / (interference if len(firsts) == 2 else 1.0)
            if left[index] <= 0:
                ends[index] = now + step
        now += step
    return ends


@settings(max_examples=25, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 4).map(float), st.integers(1, 4).map(float)), min_size=1, max_size=5
    ),
    interference=st.sampled_from([1.0, 1.3, 2.0, 3.0]),
)
def test_a_shared_device_is_followed_in_small_steps(jobs: list[tuple[int, float, float]], interference: float) -> None:
    expected = ends_by_small_steps(jobs, interference, step=1 / 512)
    assert ends_on_shared(jobs, interference) == pytest.approx(expected, abs=0.05)


def test_overlapping_work_takes_its_maximum_and_the_interference_of_its_minimum() -> None:
    assert ends_on_shared([(0, 0.0, 5.0), (1, 0.0, 2.0)], 1.5) == pytest.approx([5.0 + 0.5 * 2.0, 3.0])
    assert ends_on_shared([(0, 0.0, 5.0), (1, 1.0, 2.0)], 2.0) == pytest.approx([7.0, 5.0])
    with pytest.raises(ValueError, match="interference must be at least 1"):
        SharedDevice(simpy.Environment(), "d", 0.5)


@pytest.mark.parametrize("policy", [FixedLength(4), Pearl(5), Saguaro(3)])
@pytest.mark.parametrize("interference", [1.0, 1.4, 2.0, 2.7])
def test_the_blend_of_a_sweep_is_what_a_shared_device_takes(
    make_trace: Callable[..., RequestTrace], policy: Policy, interference: float
) -> None:
    traces = [make_trace(seed=seed) for seed in range(3)]
    run = simulate(policy, traces, TEXTBOOK, interference=interference)
    swept = sweep([policy], traces, TEXTBOOK, record_rounds=True)
    assert swept.rounds is not None
    lengths = np.array([trace.num_tokens + 1 for trace in traces])
    position = swept.rounds.position - (np.cumsum(lengths) - lengths)[swept.rounds.lane]
    placement = Placement(kind=PlacementKind.SHARED_DEVICE, interference=interference)
    timer = PlacedTimer(TEXTBOOK, traces, placement, Conditions.of(policy))
    blend_s = timer.times_of(swept.rounds, swept.rounds.lane, position)[0]
    assert [times.end_s - times.start_s for _, times in run.rounds] == pytest.approx(blend_s.tolist())
    prefills_s = [record.arrival_s for record in run.requests[1:]]
    assert len(prefills_s) == 2


def test_operations_on_a_shared_device_are_as_long_as_they_took(make_trace: Callable[..., RequestTrace]) -> None:
    run = simulate(Pearl(4), [make_trace(seed=1)], TEXTBOOK, interference=1.5)
    for name in ("verify", "look"):
        longest = max(op.end_s - op.start_s for op in run.ops if op.kind == name)
        assert longest == pytest.approx({"verify": 1.0 + 0.5 * 0.8, "look": 0.3}[name], rel=0.01)
    by_round = {times.start_s: times for _, times in run.rounds}
    assert all(op.start_s >= 0 and op.end_s >= op.start_s for op in run.ops)
    assert len(by_round) == len(run.rounds)


def test_many_streams_share_a_device_without_losing_work(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(seed=seed) for seed in range(4)]
    run = simulate(Pearl(3), traces, TEXTBOOK, interference=1.5, num_streams=3)
    assert len(run.requests) == 4
    last_s = max(record.finish_s for record in run.requests)
    busy_s = sum(times.verify_s for _, times in run.rounds)
    assert busy_s <= last_s
    with pytest.raises(ValueError, match="take turns do not interfere"):
        simulate(Pearl(3), traces, TEXTBOOK, interference=1.5, takes_turns=True)

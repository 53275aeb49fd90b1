"""Devices: a queue is a SimPy resource, and a shared device follows its two lanes step by step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.devices import Device, Fifo, SharedDevices
from sim.engine import simulate, summarise
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference, Pace
from traces.metrics.round_time import overlapped
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


def ends_on_shared(jobs: list[tuple[int, float, float, int]], interference: Interference) -> list[float]:
    """When each job (lane, arrival, work, size) ends; lane 0 is the target's."""
    env = simpy.Environment()
    shared = SharedDevices(env, interference, ("draft", "target"))
    lanes = [shared.target, shared.draft]
    ends = [0.0] * len(jobs)

    def run(index: int) -> Generator[Any]:
        lane, arrival, work, size = jobs[index]
        yield env.timeout(arrival)
        yield lanes[lane].submit(work, size).done
        ends[index] = env.now

    for index in range(len(jobs)):
        env.process(run(index))
    env.run()
    return ends


def ends_by_small_steps(
    jobs: list[tuple[int, float, float, int]], interference: Interference, step: float
) -> list[float]:
    """The same by brute force: both first jobs progress a little, more slowly while there are two."""
    left = [work for _, _, work, _ in jobs]
    ends = [0.0] * len(jobs)
    now = 0.0
    while any(value > 0 for value in left):
        firsts = []
        for lane in (0, 1):
            waiting = [i for i, job in enumerate(jobs) if job[0] == lane and job[1] <= now and left[i] > 0]
            firsts += sorted(waiting, key=lambda i: (jobs[i][1], i))[:1]
        paces = [1.0] * len(firsts)
        if len(firsts) == 2:
            tokens, rows = (jobs[index][3] for index in firsts)
            paces = [float(pace) for pace in interference.paces(tokens, rows)]
            if not (tokens and rows):
                paces = [interference.prefill] * 2
        for index, pace in zip(firsts, paces, strict=True):
            left[index] -= step * pace
            if left[index] <= 0:
                ends[index] = now + step
        now += step
    return ends


FITTED = Interference(target=Pace(0.9, -0.05, -0.1), draft=Pace(0.5, 0.02), prefill=0.8)


@settings(max_examples=20, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 4).map(float), st.integers(1, 4).map(float), st.sampled_from([0, 1, 4])
        ),
        min_size=1,
        max_size=5,
    ),
    interference=st.sampled_from([*map(Interference.of, (1.0, 1.3, 2.0, 3.0)), FITTED]),
)
def test_two_models_at_once_are_followed_in_small_steps(
    jobs: list[tuple[int, float, float, int]], interference: Interference
) -> None:
    expected = ends_by_small_steps(jobs, interference, step=1 / 128)
    assert ends_on_shared(jobs, interference) == pytest.approx(expected, abs=0.1)


def test_overlapping_work_takes_its_maximum_and_the_interference_of_its_minimum() -> None:
    assert ends_on_shared([(0, 0.0, 5.0, 1), (1, 0.0, 2.0, 1)], Interference.of(1.5)) == pytest.approx([6.0, 3.0])
    assert ends_on_shared([(0, 0.0, 5.0, 1), (1, 1.0, 2.0, 1)], Interference.of(2.0)) == pytest.approx([7.0, 5.0])
    with pytest.raises(ValueError, match="interference must be at least 1"):
        Interference.of(0.5)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Pace(0.0)


@given(verify_s=st.floats(0.01, 5), ahead_s=st.floats(0, 5), factor=st.floats(1, 3))
def test_one_factor_is_the_mixture_of_two_devices_and_turns(verify_s: float, ahead_s: float, factor: float) -> None:
    found = overlapped(verify_s, [(ahead_s, 1 / factor, 1 / factor)]).whole
    apart, turns = max(verify_s, ahead_s), verify_s + ahead_s
    assert found == pytest.approx((2 - factor) * apart + (factor - 1) * turns)


def test_a_look_slows_a_verification_down_less_than_eight_steps_do() -> None:
    pace = 0.5
    seconds = [float(overlapped(10.0, [(steps * 0.5, pace, pace)]).verify) for steps in (0, 1, 8)]
    assert seconds == pytest.approx([10.0, 10.5, 14.0])  # by what it loses while the draft works, and no more


@dataclass(frozen=True, kw_only=True)
class Interfering(ConstantLatency):
    """Two devices that slow each other down, with an odd branch."""

    paces: Interference

    def __post_init__(self) -> None:
        pass

    @property
    def interference(self) -> Interference:
        return self.paces

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart(first_s=0.1, decay=0.5, full_s=0.7)


POLICIES = [FixedLength(4), Pearl(5), Saguaro(3), SpecBranch(4, max_branches=3, uses_hrad=False)]


@pytest.mark.parametrize("policy", POLICIES, ids=label_of)
@pytest.mark.parametrize("interference", [*map(Interference.of, (1.0, 1.4, 2.0, 2.7)), FITTED])
def test_typed_and_fitted_interference_is_in_a_sweep_what_it_is_in_the_engine(
    make_trace: Callable[..., RequestTrace], policy: Policy, interference: Interference
) -> None:
    traces = [make_trace(seed=seed) for seed in range(3)]
    fitted = Interfering(**{**vars(TEXTBOOK), "branch_s": 0.03}, paces=interference)
    other = Interfering(**{**vars(TEXTBOOK), "branch_s": 0.03}, paces=Interference.of(2.5))
    for latency, typed in ((fitted, None), (other, interference)):
        run = simulate(policy, traces, latency, interference=typed)
        swept = sweep([policy], traces, latency, interference=typed)
        for name in ("decode_s", "total_s", "draft_busy_s", "target_busy_s"):
            found, expected = (getattr(each, name) for each in (swept.summary(0), summarise(run)))
            assert found == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("interference", [Interference(), Interference.of(1.7), FITTED])
def test_a_free_running_step_begins_while_the_slowed_target_works(
    make_trace: Callable[..., RequestTrace], interference: Interference
) -> None:
    trace = make_trace(seed=1, tail_depth=40)
    latency = Interfering(draft_s=0.11, verify_s=1.0, host_s=0.01, paces=interference)
    run = simulate(SpecBranch(2, max_branches=3, uses_hrad=False, num_further=30), [trace], latency)
    ops = pd.DataFrame(run.ops)
    last = ops[ops.kind == "branch"].groupby("round")[["start_s", "end_s"]].max()
    verified = ops[ops.kind == "verify"].groupby("round")["end_s"].max()
    steps = {round_.round: round_.num_branch_steps for round_, _ in run.rounds if not round_.is_finished}
    free = [index for index in last.index if steps.get(index, 0) > 2][:15]  # far from the end
    assert len(free) > 5
    assert (last.start_s[free] < verified[free] + 1e-9).all()  # it had not come when the last step began
    assert (last.end_s[free] > verified[free] - 1e-9).all()  # and had when the next would have


def test_operations_on_a_shared_device_are_as_long_as_they_took(make_trace: Callable[..., RequestTrace]) -> None:
    run = simulate(Pearl(4), [make_trace(seed=1)], TEXTBOOK, interference=Interference.of(1.5))
    for name in ("verify", "look"):
        longest = max(op.end_s - op.start_s for op in run.ops if op.kind == name)
        assert longest == pytest.approx({"verify": 1.0 + 0.5 * 0.8, "look": 0.3}[name], rel=0.01)
    by_round = {times.start_s: times for _, times in run.rounds}
    assert all(op.start_s >= 0 and op.end_s >= op.start_s for op in run.ops)
    assert len(by_round) == len(run.rounds)


def test_many_streams_share_a_device_without_losing_work(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(seed=seed) for seed in range(4)]
    run = simulate(Pearl(3), traces, TEXTBOOK, interference=Interference.of(1.5), num_streams=3)
    assert len(run.requests) == 4
    last_s = max(record.finish_s for record in run.requests)
    busy_s = sum(times.verify_s for _, times in run.rounds)
    assert busy_s <= last_s
    with pytest.raises(ValueError, match="take turns do not interfere"):
        simulate(Pearl(3), traces, TEXTBOOK, interference=Interference.of(1.5), takes_turns=True)

"""The SimPy engine against hand computation, and what must hold in every run."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.base import Defaults, Hedges, Observation, Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.probe import Probe
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import replay
from sim.engine import SimulatedRun, simulate, summarise
from sim.latency.constant import ConstantLatency
from traces.schema import FinishReason, Op, OpKind, OpShape, RequestTrace, Signal

HAND = ConstantLatency(draft_s=1.0, verify_s=10.0, host_s=0.5, draft_prefill_s=2.0, target_prefill_s=3.0)
POLICIES = [Autoregressive(), FixedLength(1), FixedLength(4), Pearl(1), Pearl(5)]


@dataclass(frozen=True)
class Trimming(Defaults):
    """Three branches of four tokens at the end; of a hit one token is kept."""

    @property
    def overlaps(self) -> bool:
        return True

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return 1

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges((0,) * len(pending) + (3,), 4)


class Noisy(ConstantLatency):
    """Constant means; draws are exponential."""

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return float(self.mean_s(op) * rng.exponential())


class Reading(ConstantLatency):
    """A quarter of each serial draft forward is the reading of its signals."""

    def further_s(self, op: OpShape) -> float:
        return self.mean_s(op) / 4 if op.kind == OpKind.DRAFT else 0.0


def trace_of(ranks: Sequence[int], request_id: int = 0, num_prompt_tokens: int = 5) -> RequestTrace:
    return RequestTrace(request_id, "p", num_prompt_tokens, len(ranks), 1.0, FinishReason.MAX_TOKENS, tuple(ranks))


def shapes_of(run: SimulatedRun, kind: str) -> list[tuple[int, int, int, int]]:
    """(round, num_tokens, num_branches, context_tokens) of all operations of a kind."""
    return [(op.round, op.num_tokens, op.num_branches, op.context_tokens) for op in run.ops if op.kind == kind]


def test_serial_speculation_by_hand() -> None:
    run = simulate(FixedLength(3), [trace_of([0, 0, 1, 0, 0, 0, 0, 2])], HAND)
    times = [times for _, times in run.rounds]
    assert [(t.start_s, t.end_s) for t in times] == [(3.0, 16.5), (16.5, 30.0), (30.0, 40.5)]
    assert [(t.draft_s, t.verify_s) for t in times] == [(3.0, 10.0), (3.0, 10.0), (0.0, 10.0)]
    assert shapes_of(run, "prefill") == [(-1, 4, 1, 0), (-1, 4, 1, 0)]
    assert shapes_of(run, "draft") == [
        (0, 1, 1, 4),
        (0, 1, 1, 5),
        (0, 1, 1, 6),
        (1, 1, 1, 7),
        (1, 1, 1, 8),
        (1, 1, 1, 9),
    ]
    assert shapes_of(run, "verify") == [(0, 4, 1, 4), (1, 4, 1, 7), (2, 1, 1, 11)]
    (request,) = run.requests
    assert (request.arrival_s, request.first_token_s, request.finish_s) == (0.0, 16.5, 40.5)
    summary = summarise(run)
    assert (summary.decode_s, summary.total_s) == (37.5, 40.5)
    assert summary.decode_tokens_per_s == pytest.approx(8 / 37.5)


def test_a_full_acceptance_without_a_look_leaves_two_tokens_to_forward() -> None:
    run = simulate(FixedLength(2), [trace_of([0] * 9)], HAND)
    assert shapes_of(run, "draft")[:4] == [(0, 1, 1, 4), (0, 1, 1, 5), (1, 2, 1, 6), (1, 1, 1, 8)]


def test_overlap_by_hand() -> None:
    # Round 0 pre-verifies: look and 2 branch steps (3 s) under a verification (10 s). Then 2 pending and a hit.
    run = simulate(Pearl(3), [trace_of([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])], HAND)
    assert [(times.end_s, times.draft_s) for _, times in run.rounds][:3] == [(13.5, 3.0), (24.0, 3.0), (34.5, 3.0)]
    starts = {(op.round, op.kind): op.start_s for op in reversed(run.ops)}
    assert [starts[0, kind] for kind in ("verify", "look", "branch")] == [3.0, 3.0, 4.0]
    assert shapes_of(run, "look")[:3] == [(0, 1, 1, 4), (1, 1, 1, 7), (2, 1, 1, 10)]
    assert shapes_of(run, "branch")[:4] == [(0, 1, 1, 5), (0, 1, 1, 6), (1, 1, 1, 8), (1, 1, 1, 9)]
    slow_draft = ConstantLatency(draft_s=4.0, verify_s=10.0)
    slow = simulate(Pearl(3), [trace_of([0, 0, 0, 0, 1, 0, 0, 0, 0])], slow_draft)
    assert slow.rounds[0][1].end_s == 12.0  # the longer side decides


def test_branches_are_one_batch_and_a_trimmed_hit_needs_no_look() -> None:
    run = simulate(Trimming(), [trace_of([2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])], HAND)
    assert shapes_of(run, "branch")[:8] == [
        *((0, 1, 3, 5 + step) for step in range(4)),
        *((1, 1, 3, 7 + step) for step in range(4)),
    ]
    assert {index for index, *_ in shapes_of(run, "look")} == {0}


def test_one_device_for_both_serialises_everything() -> None:
    trace = trace_of([0, 0, 0, 0, 1, 0, 0, 0, 0])
    run = simulate(Pearl(3), [trace], HAND, takes_turns=True)
    assert run.requests[0].finish_s == pytest.approx(sum(op.end_s - op.start_s for op in run.ops))
    verify, look = (next(op for op in run.ops if op.kind == kind) for kind in ("verify", "look"))
    assert look.start_s == verify.end_s  # the verification was submitted first


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_zero_latency_takes_no_time_and_changes_no_round(policy: Policy, alpha: float) -> None:
    trace = Geometric(alpha=alpha).sample(60, 0, np.random.default_rng(1))
    run = simulate(policy, [trace], ConstantLatency(draft_s=0.0, verify_s=0.0))
    assert run.requests[0].finish_s == 0.0
    assert [done for done, _ in run.rounds] == replay(policy, trace)


def test_extreme_acceptance_by_hand() -> None:
    latency = ConstantLatency(draft_s=1.0, verify_s=10.0)
    never = simulate(FixedLength(4), [trace_of([1] * 50)], latency)
    assert len(never.rounds) == 50
    always = simulate(FixedLength(4), [trace_of([0] * 50)], latency)
    assert (len(always.rounds), always.requests[0].finish_s) == (10, 10 * 14.0)


def test_draft_and_verify_ending_at_one_instant_end_the_round_there() -> None:
    run = simulate(Pearl(5), [trace_of([0] * 60)], ConstantLatency(draft_s=2.0, verify_s=10.0))
    lengths = {times.end_s - times.start_s for _, times in run.rounds}
    assert lengths == {10.0}


@settings(max_examples=30, deadline=None)
@given(
    policy=st.sampled_from([*POLICIES, Trimming()]),
    num_streams=st.integers(1, 4),
    takes_turns=st.booleans(),
    is_drawn=st.booleans(),
)
def test_time_and_work_are_consistent_in_every_run(
    policy: Policy, num_streams: int, takes_turns: bool, is_drawn: bool
) -> None:
    model = Geometric(alpha=0.7, rank_decay=0.3)
    traces = [model.sample(25, index, np.random.default_rng(index)) for index in range(6)]
    latency = Noisy(draft_s=0.2, verify_s=1.0, host_s=0.05, draft_prefill_s=0.5, target_prefill_s=2.0)

    def run(record_ops: bool) -> SimulatedRun:
        rng = np.random.default_rng(7) if is_drawn else None
        options = {"num_streams": num_streams, "takes_turns": takes_turns, "record_ops": record_ops}
        return simulate(policy, traces, latency, rng=rng, **options)

    whole = run(record_ops=True)
    bare = run(record_ops=False)
    assert bare.rounds == whole.rounds
    assert not bare.ops
    assert {request.request_id for request in whole.requests} == set(range(6))

    by_device: dict[tuple[str, int], list[Op]] = defaultdict(list)
    work: dict[tuple[int, int, str], float] = defaultdict(float)
    for op in whole.ops:
        by_device[op.device, op.request_id if op.actor == "host" else -1].append(op)
        work[op.request_id, op.round, op.actor] += op.end_s - op.start_s
    for ops in by_device.values():
        for earlier, later in itertools.pairwise(sorted(ops, key=lambda op: (op.start_s, op.end_s))):
            assert later.start_s >= earlier.end_s - 1e-9, "a device did two things at once"
    for done, times in whole.rounds:
        assert times.end_s >= times.start_s
        assert work[done.request_id, done.round, "draft"] == pytest.approx(times.draft_s, abs=1e-9)
        assert work[done.request_id, done.round, "target"] == pytest.approx(times.verify_s, abs=1e-9)
    for trace in traces:
        rounds = [done for done, _ in whole.rounds if done.request_id == trace.request_id]
        assert rounds == replay(policy, trace)


def test_streams_share_the_devices() -> None:
    traces = [trace_of([0] * 40, index) for index in range(4)]
    alone = summarise(simulate(FixedLength(3), traces, HAND))
    together = summarise(simulate(FixedLength(3), traces, HAND, num_streams=2))
    assert together.total_s < alone.total_s
    assert together.target_utilisation > alone.target_utilisation
    assert together.num_emitted == alone.num_emitted
    with pytest.raises(ValueError, match="num_streams must be at least 1"):
        simulate(FixedLength(3), traces, HAND, num_streams=0)


def test_policies_share_what_luck_they_can() -> None:
    """The k-th verification of a request takes as long under any policy, and its prefill, too."""
    model = Geometric(alpha=0.7)
    traces = [model.sample(30, index, np.random.default_rng(index)) for index in range(3)]
    latency = Noisy(draft_s=0.2, verify_s=1.0, draft_prefill_s=0.5, target_prefill_s=2.0)

    def durations(policy: Policy, kind: str) -> dict[int, list[float]]:
        run = simulate(policy, traces, latency, rng=np.random.default_rng(5))
        found: dict[int, list[float]] = defaultdict(list)
        for op in run.ops:
            if op.kind == kind:
                found[op.request_id].append(op.end_s - op.start_s)
        return found

    for kind in ("prefill", "verify"):
        one, other = durations(FixedLength(2), kind), durations(FixedLength(5), kind)
        for request_id in one:
            shared = min(len(one[request_id]), len(other[request_id]))
            assert one[request_id][:shared] == pytest.approx(other[request_id][:shared])


def test_drawn_times_average_to_the_means() -> None:
    trace = Geometric(alpha=0.8).sample(4000, 0, np.random.default_rng(0))
    latency = Noisy(draft_s=1.0, verify_s=5.0)
    mean = simulate(FixedLength(3), [trace], latency, record_ops=False)
    drawn = simulate(FixedLength(3), [trace], latency, rng=np.random.default_rng(3), record_ops=False)
    num = len(mean.rounds)
    stderr = np.sqrt(num * (3 * 1.0 + 25.0))
    error = drawn.requests[0].finish_s - mean.requests[0].finish_s
    assert abs(error) <= 4 * stderr, f"{error=:.1f} is {error / stderr:.1f} standard errors off"


def test_cold_starts_and_signals_cost_the_same_in_engine_and_sweep(make_trace: Callable[..., RequestTrace]) -> None:
    """A round's first draft forwards are dearer, and so is every forward whose signals are read."""
    from sim.latency.fitted import FittedLatency
    from sim.sweep.sweep import sweep
    from traces.fits.calibration import Calibration, LatencyFit
    from traces.fits.cold_start import ColdStart
    from traces.fits.interference import Interference, Pace

    def law(base: float) -> LatencyFit:
        return LatencyFit(
            coefficients=(base, *[0.0] * 7),
            intervals=((0.0, 0.0),) * 8,
            ratios=(1.0,),
            least=1,
            left_out=(),
            r2=None,
            error=0.0,
            num_ops=1,
            num_requests=1,
        )

    groups = {
        "draft": 1.0,
        "read": 0.25,
        "verify": 6.0,
        "predict": 0.75,
        "draft_prefill": 1.0,
        "target_prefill": 2.0,
        "host": 0.0,
    }
    calibration = Calibration(
        fits={name: law(base) for name, base in groups.items()},
        round_check=None,
        num_requests=1,
        num_unclean=0,
        cold_start=ColdStart(first_s=0.5, decay=0.25, full_s=4.0),
        drafting=1.25,
        interference=Interference(target=Pace(1 / 1.2), draft=Pace(0.5)),
    )
    latency = FittedLatency(calibration, is_noisy=False)
    trace = make_trace(num_tokens=80, with_classes=True)
    run = simulate(FixedLength(3), [trace], latency)
    turn, times = run.rounds[0]
    assert times.draft_s == pytest.approx(3 + 0.5 * (1 + 0.25 + 0.0625))
    _, second = run.rounds[1]
    waited = 7.5 / 4 + 0.25**3
    assert second.draft_s == pytest.approx(3 + 0.5 * min(1, waited) * (1 + 0.25 + 0.0625))
    read = simulate(ConfidenceStop(threshold=0.0, max_length=3), [trace], latency)
    assert read.rounds[0][1].draft_s == pytest.approx(3 * 1.25 + 0.5 * 1.3125)
    assert turn.num_serial == 3
    assert times.verify_s == 7.5  # a draft runs in between
    assert simulate(Autoregressive(), [trace], latency).rounds[0][1].verify_s == 6.0
    predicting = SpecBranch(draft_length=3, max_branches=2)
    predicted, its_times = simulate(predicting, [trace], latency).rounds[0]
    ahead_s = its_times.draft_s - predicted.num_serial * 1.25 - 0.5 * (1 - 0.25**predicted.num_serial) / 0.75
    assert 0 < ahead_s < 9.9
    assert its_times.verify_s == pytest.approx(7.5 + 0.75 + ahead_s / 6)  # a sixth of what overlaps is lost
    overlapped, its_times = simulate(Pearl(5), [trace], latency).rounds[0]
    assert its_times.verify_s == pytest.approx(9.0)  # the draft works all the time
    count = overlapped.num_draft_forwards
    alone_s = count + 0.5 * (1 - 0.25**count) / 0.75
    assert its_times.draft_s == pytest.approx(9.0 + alone_s - 4.5)  # half as fast beside it, then alone
    policies = [
        FixedLength(3),
        ConfidenceStop(threshold=0.3, max_length=5),
        Pearl(2),
        Pearl(5),
        Autoregressive(),
        Probe(),
        predicting,
    ]
    swept = sweep(policies, [trace], latency)
    for index, policy in enumerate(policies):
        rounds = simulate(policy, [trace], latency).rounds
        seconds = rounds[-1][1].end_s - rounds[0][1].start_s
        assert swept.decode_s[index].sum() == pytest.approx(seconds, rel=1e-9)


def test_what_a_policy_reads_is_an_operation_of_its_own_right_after_the_forward() -> None:
    latency = Reading(draft_s=1.0, verify_s=10.0)
    run = simulate(FixedLength(2), [trace_of([0, 0, 1, 0, 0, 0])], latency)
    plain = simulate(FixedLength(2), [trace_of([0, 0, 1, 0, 0, 0])], HAND, record_ops=False)
    assert len(run.rounds) == len(plain.rounds)
    drafts = [op for op in run.ops if op.kind == OpKind.DRAFT]
    reads = [op for op in run.ops if op.kind == OpKind.READ]
    assert len(drafts) == len(reads) == sum(round_.num_draft_forwards for round_, _ in run.rounds) > 0
    for draft, read in zip(drafts, reads, strict=True):
        assert (draft.end_s - draft.start_s, read.end_s - read.start_s) == pytest.approx((0.75, 0.25))
        assert (read.start_s, read.actor, read.is_beside) == (draft.end_s, draft.actor, False)

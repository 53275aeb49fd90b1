"""The sweep gives the very rounds of the step machine and the times of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.model_shapes import named_shape
from sim.decoding.policies.base import Defaults, Hedges, Observation, Policy
from sim.decoding.policies.catalog import POLICIES
from sim.decoding.policies.overlapped.outcome_hedging import Choice, OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.probe import Probe
from sim.decoding.policies.overlapped.saguaro import FanOut, Saguaro
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.decoding.replay import replay
from sim.engine import simulate, summarise
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from sim.latency.roofline import Hardware, RooflineLatency
from sim.sweep.lockstep import HedgeArrays, Ints, Lanes, TraceArrays
from sim.sweep.rules import ARRAY_RULES, PlainArrays
from sim.sweep.sweep import Sweep, num_draft_forwards, sweep
from traces.fits.cold_start import ColdStart
from traces.metrics.counts import Counts
from traces.schema import FinishReason, RequestTrace, Round, Signal

TAIL_DEPTH = 8
SMALL, LARGE = named_shape("llama-68m"), named_shape("llama-3.1-8b")
DEVICE = Hardware(name="a device", bandwidth_bytes_per_s=1e12, peak_flops_per_s=2e11, overhead_s=1e-4)
ROOFLINE = RooflineLatency(target=LARGE, draft=SMALL, target_hardware=DEVICE, draft_hardware=DEVICE, host_s=1e-4)
CONSTANT = ConstantLatency(draft_s=0.1, verify_s=1.0, host_s=0.01, draft_prefill_s=0.3, target_prefill_s=2.0)


@dataclass(frozen=True)
class AnyHedge(Defaults):
    """Drafts, withdraws, hedges and keeps by fixed numbers: every path of the step machine, no sense."""

    serial: int = 2
    submit: int = 3
    fanout: int = 1
    at_end: int = 2
    num_steps: int = 3
    kept: int = 2

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self.serial - len(pending)

    def keep(self, seen: Observation, drafted: Sequence[Signal]) -> int:
        return self.kept if seen.was_hit and seen.num_rounds % 2 else self.submit

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges((self.fanout,) * len(pending) + (self.at_end,), self.num_steps)


class AnyHedgeRule(PlainArrays):
    overlaps = True

    def __init__(self, policies: Sequence[AnyHedge], arrays: TraceArrays) -> None:
        names = ("serial", "submit", "fanout", "at_end", "num_steps", "kept")
        self.of = {name: np.array([getattr(policy, name) for policy in policies]) for name in names}

    def num_wanted(self, lanes: Lanes) -> Ints:
        lanes.memory.setdefault("num_rounds", np.zeros_like(lanes.lane))
        return self.of["serial"][lanes.row]

    def _kept(self, lanes: Lanes) -> Ints:
        is_odd = lanes.was_hit & (lanes.memory["num_rounds"] % 2 == 1)
        return np.where(is_odd, self.of["kept"][lanes.row], self.of["submit"][lanes.row])

    def num_submitted(self, lanes: Lanes, num_drafted: Ints) -> Ints | None:
        return self._kept(lanes)

    def num_kept(self, lanes: Lanes, num_ahead: Ints) -> Ints | None:
        return self._kept(lanes)

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        width = int(num_pending.max()) + 1
        below = np.where(np.arange(width) < num_pending[:, None], self.of["fanout"][lanes.row][:, None], 0)
        return HedgeArrays(self.of["at_end"][lanes.row], self.of["num_steps"][lanes.row], below)

    def learn(self, lanes: Lanes, num_pending: Ints, num_accepted: Ints) -> None:
        lanes.memory["num_rounds"] = lanes.memory["num_rounds"] + 1


def random_trace(request_id: int, seed: int, num_tokens: int, *, alpha: float, num_beyond: int) -> RequestTrace:
    """num_beyond: how far the request's maximum lies behind its end (0: it ended there)."""
    rng = np.random.default_rng(seed)
    ranks = np.where(rng.random(num_tokens) < alpha, 0, rng.integers(1, 5, num_tokens))

    def signals(count: int) -> tuple[Signal, ...]:
        return tuple(Signal(*row) for row in rng.random((count, 3)).tolist())

    ends = [*np.flatnonzero(ranks).tolist(), num_tokens]
    return RequestTrace(
        request_id=request_id,
        prompt_id=f"prompt-{request_id}",
        num_prompt_tokens=int(rng.integers(1, 30)),
        max_new_tokens=num_tokens + num_beyond,
        temperature=1.0,
        finish_reason=FinishReason.EOS if num_beyond else FinishReason.MAX_TOKENS,
        ranks=tuple(ranks.tolist()),
        signals=signals(num_tokens),
        tails={position: signals(TAIL_DEPTH) for position in ends},
        tail_depth=TAIL_DEPTH,
        class_probs=tuple(map(tuple, rng.dirichlet([1, 1, 1], num_tokens + 1).tolist())),
    )


def _outcome_hedging(*, hedges: Choice, slope: float, **settings: Any) -> OutcomeHedging:
    """Geometric fan-outs take a constant acceptance."""
    return OutcomeHedging(hedges=hedges, slope=0.0 if hedges is Choice.GEOMETRIC else slope, **settings)


# Settings of every policy in the catalog, by its name there; a new policy needs an entry.
SETTINGS = {
    "autoregressive": st.builds(Autoregressive),
    "fixed_length": st.builds(FixedLength, draft_length=st.integers(1, 12)),
    "pearl": st.builds(Pearl, draft_length=st.integers(1, 12)),
    "probe": st.builds(Probe, max_length=st.integers(1, 8), max_branches=st.integers(1, 3)),
    "confidence_stop": st.builds(
        ConfidenceStop,
        threshold=st.floats(-1, 1),
        max_length=st.integers(1, TAIL_DEPTH + 1),
        signal=st.sampled_from(ConfidenceSignal),
    ),
    "product_rule": st.builds(
        ProductRule,
        threshold=st.floats(-0.1, 1),
        max_length=st.integers(1, TAIL_DEPTH),
        guess_by=st.sampled_from(ConfidenceSignal),
        slope=st.floats(0, 3),
    ),
    "adaedl": st.builds(
        AdaEdl,
        threshold=st.floats(0, 1),
        entropy_factor=st.sampled_from([0.2, 1.0]),
        max_length=st.integers(1, TAIL_DEPTH),
        target_rate=st.sampled_from([0.3, 0.9]),
        step=st.sampled_from([0.0, 0.01, 0.5]),
    ),
    "saguaro": st.builds(
        Saguaro, draft_length=st.integers(1, 7), fan_out=st.integers(1, 4), spread=st.sampled_from(FanOut)
    ),
    "specbranch": st.builds(
        SpecBranch,
        draft_length=st.integers(1, TAIL_DEPTH - 1),
        prior_length=st.integers(0, TAIL_DEPTH - 1),
        max_branches=st.integers(1, 5),
        epsilon=st.floats(0, 1),
        uses_hrad=st.booleans(),
        is_fixed_count=st.booleans(),
        on_miss=st.sampled_from(OnMiss),
        signal=st.sampled_from(ConfidenceSignal),
    ),
    "outcome_hedging": st.builds(
        _outcome_hedging,
        guess_by=st.sampled_from(ConfidenceSignal),
        intercept=st.floats(-2, 2),
        slope=st.sampled_from([0.0, 0.5, 3.0]),
        draft_length=st.integers(0, TAIL_DEPTH - 1),
        max_branches=st.integers(0, 6),
        serial_length=st.integers(0, TAIL_DEPTH - 1),
        least_reach=st.sampled_from([0.0, 0.05, 0.4]),
        least_acceptance=st.sampled_from([0.0, 0.5]),
        hedges=st.sampled_from(Choice),
        rank_decay=st.sampled_from([0.0, 0.45, 0.9]),
        uses_hrad=st.booleans(),
    ),
    "prompt_lookup": st.builds(PromptLookup, max_length=st.integers(1, TAIL_DEPTH)),
}
ANY_HEDGE = st.builds(
    AnyHedge,
    serial=st.integers(0, 5),
    submit=st.integers(0, 5),
    fanout=st.integers(0, 3),
    at_end=st.integers(0, 3),
    num_steps=st.integers(0, 5),
    kept=st.integers(0, 5),
)
TRACES = st.builds(
    random_trace,
    st.just(0),
    st.integers(0, 10_000),
    st.integers(1, 60),
    alpha=st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0]),
    num_beyond=st.sampled_from([0, 1, 2, 7]),
)


def with_ids(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    return [RequestTrace(**{**trace.__dict__, "request_id": index}) for index, trace in enumerate(traces)]


def rounds_of(result: Sweep, lane: int) -> list[tuple[int, ...]]:
    rounds = result.rounds
    assert rounds is not None
    row_tokens = rounds.num_branches * (1 + rounds.num_branch_steps)
    num_rejected = np.where(rounds.num_emitted > rounds.num_accepted, rounds.num_pending - rounds.num_accepted, 0)
    columns = np.array(
        [
            rounds.position - rounds.position[rounds.lane == lane].min(),
            rounds.num_serial,
            rounds.num_pending,
            rounds.num_accepted,
            rounds.num_emitted,
            rounds.num_branches,
            rounds.num_branch_steps,
            rounds.num_serial + row_tokens,
            num_draft_forwards(rounds),
            rounds.is_hit,
            rounds.num_kept,
            num_rejected,
            rounds.is_finished,
        ]
    )
    return [tuple(row) for row in columns.T[rounds.lane == lane].tolist()]


def fields_of(done: Round) -> tuple[int, ...]:
    return (
        done.position,
        done.num_serial,
        done.num_pending,
        done.num_accepted,
        done.num_emitted,
        done.num_branches,
        done.num_branch_steps,
        done.num_drafted,
        done.num_draft_forwards,
        done.is_hit,
        done.num_kept,
        done.num_rejected,
        done.is_finished,
    )


def check_sweep(
    policies: Sequence[Policy], traces: Sequence[RequestTrace], latency: LatencyModel, *, takes_turns: bool, fewest: int
) -> None:
    """A sweep against replay, field by field, and against the engine, to 1e-9; fewest: lanes worth an array."""
    traces = with_ids(traces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.sweep.sweep._FEWEST_LANES", fewest)
        patch.setitem(ARRAY_RULES, AnyHedge, AnyHedgeRule)
        result = sweep(policies, traces, latency, takes_turns=takes_turns, record_rounds=True)
    for row, policy in enumerate(policies):
        rounds = [replay(policy, trace) for trace in traces]
        for column, expected in enumerate(rounds):
            found = rounds_of(result, row * len(traces) + column)
            assert found == [fields_of(done) for done in expected], f"{policy} on request {column}"
        run = summarise(simulate(policy, traces, latency, takes_turns=takes_turns))
        summary = result.summary(row)
        for name in Counts.__dataclass_fields__:
            assert getattr(summary, name) == getattr(run, name), f"{name} of {policy}"
        for name in ("decode_s", "total_s", "draft_busy_s", "target_busy_s"):
            assert getattr(summary, name) == pytest.approx(getattr(run, name), rel=1e-9), f"{name} of {policy}"
        held = [done.num_pending + done.num_branches * (1 + done.num_branch_steps) for of in rounds for done in of]
        assert result.peak_kv_tokens[row] == max(held), f"peak of {policy}"


class Waking(ConstantLatency):
    """Draft forwards are cold after a wait, by more than a whole forward."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart(first_s=0.15, decay=0.6, full_s=1.3)


WAKING = Waking(draft_s=0.1, verify_s=1.0, host_s=0.01, draft_prefill_s=0.3, target_prefill_s=2.0)


@pytest.mark.parametrize("latency", [CONSTANT, ROOFLINE, WAKING], ids=["constant", "roofline", "waking"])
@pytest.mark.parametrize("fewest_lanes", [0, 10**9], ids=["arrays", "step machine"])
@settings(max_examples=30, deadline=None)
@given(
    policies=st.lists(st.one_of(*SETTINGS.values(), ANY_HEDGE), min_size=1, max_size=4),
    traces=st.lists(TRACES, min_size=1, max_size=2),
    takes_turns=st.booleans(),
)
def test_sweep_gives_the_rounds_of_replay_and_the_times_of_the_engine(
    latency: LatencyModel, fewest_lanes: int, policies: list[Policy], traces: list[RequestTrace], takes_turns: bool
) -> None:
    check_sweep(policies, traces, latency, takes_turns=takes_turns, fewest=fewest_lanes)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), traces=st.lists(TRACES, min_size=1, max_size=2))
def test_every_policy_of_the_catalog_is_swept_as_simulated(
    name: str, data: st.DataObject, traces: list[RequestTrace]
) -> None:
    assert name in SETTINGS, f"{name} is in the catalog, but no settings of it are tried here; give some in SETTINGS."
    policies = data.draw(st.lists(SETTINGS[name], min_size=3, max_size=6))
    is_method = type(policies[0]) is not Probe  # which is an experiment: nobody sweeps it
    assert not is_method or type(policies[0]) in ARRAY_RULES, (
        f"{name} has no array form, so that a sweep of it is slow."
    )
    check_sweep(policies, traces, WAKING, takes_turns=False, fewest=0)


def test_outcomes_of_equal_weight_are_hedged_in_the_policys_order() -> None:
    """Without a tail of ranks most outcomes weigh nothing, and a whole fan-out hedges some of these."""
    traces = [random_trace(index, index, 60, alpha=0.6, num_beyond=0) for index in range(2)]
    policies = [
        OutcomeHedging(slope=0.0, rank_decay=0.0, least_reach=0.0, draft_length=length, max_branches=count)
        for length in (3, 7)
        for count in (2, 5, 12)
    ]
    check_sweep(policies, traces, CONSTANT, takes_turns=False, fewest=0)


def test_results_do_not_depend_on_how_rounds_are_grouped() -> None:
    traces = [random_trace(index, index, 80, alpha=0.7, num_beyond=0) for index in range(3)]
    policies = [FixedLength(3), Pearl(5), FixedLength(7), ConfidenceStop(0.5, 6)]
    whole = sweep(policies, traces, ROOFLINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.sweep.sweep.ROUNDS_AT_ONCE", 7)
        pieces = sweep(policies, traces, ROOFLINE)
    np.testing.assert_array_equal(pieces.decode_s, whole.decode_s)
    for name, values in whole.counts.items():
        np.testing.assert_array_equal(pieces.counts[name], values)


def test_a_trace_without_signals_is_refused() -> None:
    trace = RequestTrace(0, "p", 4, 2, 1.0, FinishReason.MAX_TOKENS, (0, 1))
    with pytest.raises(ValueError, match="no draft confidences"):
        sweep([ConfidenceStop()], [trace], CONSTANT)

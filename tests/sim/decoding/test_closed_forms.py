"""Every closed form against the SimPy engine (or the Markov chain it stands for) under geometric acceptance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from sim.decoding.acceptance_models import Geometric
from sim.decoding.closed_forms import (
    best_sps_draft_length,
    branch_hit_probability,
    draft_length_cap,
    dsi_speedup,
    expected_accepted_tokens,
    expected_emitted_tokens,
    geometric_fanout,
    ideal_parallel_speedup,
    ideal_sps_speedup,
    outcome_cache_speedup,
    parallel_speedup_renewal,
    parallel_speedup_theorem1,
    pearl_rollback_rate,
    pearl_speedup,
    pearl_tokens_per_step,
    specbranch_preverify_speedup,
    specbranch_preverify_tokens_per_step,
    specbranch_serial_speedup,
    sps_rollback_rate,
    sps_speedup,
    ssd_speedup,
)
from sim.decoding.policies.base import Defaults, Hedges, Observation, Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.engine import simulate, summarise
from sim.latency.constant import ConstantLatency
from sim.sweep.lockstep import HedgeArrays, Ints, Lanes, TraceArrays
from sim.sweep.rules import ARRAY_RULES, PlainArrays
from sim.sweep.sweep import sweep
from traces.schema import FinishReason, RequestTrace, Signal

NUM_REQUESTS = 150
NUM_SIMULATED = 2  # requests that the engine runs as well; a sweep gives the very same rounds and times, only sooner


@dataclass(frozen=True)
class Windows(Defaults):
    """Windows of `length`, and hedges for `length` more at every rejection (`at_rejection`) and at the end (`at_end`).

    at_rejection = 0 is SpecBranch with its branch point at the window's end, otherwise it is SSD's outcome cache.
    """

    length: int
    at_rejection: int
    at_end: int
    is_serial_after_miss: bool

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self.length - len(pending) if self.is_serial_after_miss else 0

    def hedge(self, seen: Observation, pending: Sequence[Signal], frontier: Signal) -> Hedges:
        return Hedges((self.at_rejection,) * len(pending) + (self.at_end,), self.length)


class WindowsRule(PlainArrays):
    """`Windows` for the sweep."""

    overlaps = True

    def __init__(self, policies: Sequence[Windows], arrays: TraceArrays) -> None:
        names = ("length", "at_rejection", "at_end", "is_serial_after_miss")
        self.of = {name: np.array([int(getattr(policy, name)) for policy in policies]) for name in names}

    def num_wanted(self, lanes: Lanes) -> Ints:
        return (self.of["length"] * self.of["is_serial_after_miss"])[lanes.row]

    def hedge(self, lanes: Lanes, num_pending: Ints) -> HedgeArrays:
        width = int(num_pending.max()) + 1
        below = np.where(np.arange(width) < num_pending[:, None], self.of["at_rejection"][lanes.row, None], 0)
        return HedgeArrays(self.of["at_end"][lanes.row], self.of["length"][lanes.row], below)


def geometric_traces(alpha: float, rescue_rate: float, seed: int, num_tokens: int = 3000) -> list[RequestTrace]:
    """Requests that end by themselves, so that no window is cut. rescue_rate: second choice right, first wrong."""
    model = Geometric(alpha=alpha, rank_decay=1 - rescue_rate, tail_depth=0)
    rngs = np.random.default_rng(seed).spawn(NUM_REQUESTS)
    traces = [model.sample(num_tokens, index, rng) for index, rng in enumerate(rngs)]
    return [
        dataclasses.replace(trace, max_new_tokens=num_tokens + 100, finish_reason=FinishReason.EOS) for trace in traces
    ]


@dataclass(frozen=True)
class Sums:
    """One policy, a number a request."""

    counts: dict[str, np.ndarray]
    decode_s: np.ndarray


def runs_of(policies: Sequence[Policy], traces: Sequence[RequestTrace], cost_ratio: float) -> list[Sums]:
    """Sums of the sweep, of which the first requests are held against the SimPy engine's."""
    latency = ConstantLatency(draft_s=1.0, verify_s=cost_ratio)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARRAY_RULES, Windows, WindowsRule)
        swept = sweep(policies, traces, latency)
    for row, policy in enumerate(policies):
        for column, trace in enumerate(traces[:NUM_SIMULATED]):
            run = summarise(simulate(policy, [trace], latency, record_ops=False))
            assert swept.decode_s[row, column] == pytest.approx(run.decode_s, rel=1e-9), policy
            for name, values in swept.counts.items():
                assert values[row, column] == getattr(run, name), f"{name} of {policy}"
    return [
        Sums({name: values[row] for name, values in swept.counts.items()}, swept.decode_s[row])
        for row in range(len(policies))
    ]


def check_ratio(part: np.ndarray, whole: np.ndarray, expected: float, what: str) -> None:
    """Sum of parts / sum of wholes against its closed form: within 4 standard errors and within 1% (of shares and
    rates: one percentage point), which the sample must be large enough to tell.

    The error is that of a ratio estimator over requests; 4 is widened as Student's t is for so few of them.
    """
    ratio = part.sum() / whole.sum()
    stderr = (part - ratio * whole).std(ddof=1) / np.sqrt(len(part)) / whole.mean()
    error = ratio - expected
    edge = 1e-3 * abs(expected)  # a request's first and last round are no part of the steady state
    bound = float(stats.t.isf(stats.norm.sf(4), len(part) - 1))
    percent = 0.01 * max(1.0, abs(expected))
    assert abs(error) <= bound * stderr + edge, f"{what}: {ratio:.4f} is {error / stderr:.1f} standard errors off"
    assert abs(error) <= percent, f"{what}: {ratio:.4f} is {error / expected:.2%} off"
    assert stderr <= 0.4 * percent, f"{what}: the sample is too small to tell 1%: {stderr=:.4f}"


def check_all(alpha: float, gamma: int, cost_ratio: float, rescue_rate: float, traces: list[RequestTrace]) -> None:
    """All closed forms that a policy in the engine can stand for, on the same requests."""
    where = f"alpha={alpha:.3f}, gamma={gamma}, c={cost_ratio:.2f}, rescue={rescue_rate:.2f}"
    sps, pearl, serial, preverify, cache = runs_of(
        [
            FixedLength(gamma),
            Pearl(gamma),
            Windows(gamma, 0, 2, is_serial_after_miss=True),
            Windows(gamma, 0, 2, is_serial_after_miss=False),
            Windows(gamma, 2, 2, is_serial_after_miss=True),
        ],
        traces,
        cost_ratio,
    )

    def check(run: Sums, part: str, whole: str, expected: np.ndarray, what: str) -> None:
        check_ratio(run.counts[part], run.counts[whole], float(expected), f"{what}, {where}")

    def check_speedup(run: Sums, expected: np.ndarray, what: str) -> None:
        check_ratio(cost_ratio * run.counts["num_emitted"], run.decode_s, float(expected), f"{what}, {where}")

    check(sps, "num_emitted", "num_rounds", expected_emitted_tokens(alpha, gamma), "emitted")
    check(sps, "num_accepted", "num_rounds", expected_accepted_tokens(alpha, gamma), "accepted")
    check(sps, "num_rejected", "num_submitted", sps_rollback_rate(alpha, gamma), "SpS rollback")
    check_speedup(sps, sps_speedup(alpha, gamma, cost_ratio), "SpS")
    check(pearl, "num_emitted", "num_rounds", pearl_tokens_per_step(alpha, gamma), "PEARL tokens")
    check(pearl, "num_lost", "num_drafted", pearl_rollback_rate(alpha, gamma), "PEARL rollback")
    check_speedup(pearl, pearl_speedup(alpha, gamma, cost_ratio), "PEARL")
    hit = branch_hit_probability(alpha, rescue_rate)
    check_speedup(serial, specbranch_serial_speedup(alpha, gamma, hit, cost_ratio), "SpecBranch serial")
    tokens = specbranch_preverify_tokens_per_step(alpha, gamma, hit)
    check(preverify, "num_emitted", "num_rounds", tokens, "SpecBranch pre-verify tokens")
    check_speedup(preverify, specbranch_preverify_speedup(alpha, gamma, hit, cost_ratio), "SpecBranch pre-verify")
    # At a rejection ranks 1 and 2 are hedged, at the end 0 and 1; a round's look is a forward more than gamma.
    hit_rate = (1 - alpha**gamma) * (1 - (1 - rescue_rate) ** 2) + alpha**gamma * hit
    check(cache, "num_hits", "num_hedged_rounds", hit_rate, "outcome cache hits")
    slowdown = (gamma + 1) / gamma
    speedup = outcome_cache_speedup(alpha, gamma, hit_rate, cost_ratio, step_slowdown=slowdown)
    check_speedup(cache, speedup, "outcome cache")


@pytest.mark.parametrize(
    ("alpha", "gamma", "cost_ratio", "rescue_rate"), [(0.5, 1, 3.0, 0.5), (0.8, 5, 8.5, 0.7), (0.92, 8, 6.0, 0.3)]
)
def test_closed_forms_match_the_engine(alpha: float, gamma: int, cost_ratio: float, rescue_rate: float) -> None:
    check_all(alpha, gamma, cost_ratio, rescue_rate, geometric_traces(alpha, rescue_rate, seed=gamma))


@pytest.mark.slow
@pytest.mark.parametrize("point", range(200))
def test_closed_forms_match_the_engine_on_a_drawn_grid(point: int) -> None:
    rng = np.random.default_rng([2211, point])
    alpha, rescue_rate = float(rng.uniform(0.2, 0.97)), float(rng.uniform(0.1, 0.9))
    gamma, cost_ratio = int(rng.integers(1, 13)), float(rng.uniform(1.0, 20.0))
    check_all(alpha, gamma, cost_ratio, rescue_rate, geometric_traces(alpha, rescue_rate, seed=10_000 + point))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [1, 4])
def test_extreme_acceptance_is_met_exactly(alpha: float, gamma: int) -> None:
    trace = RequestTrace(0, "p", 8, 10_000, 1.0, FinishReason.EOS, (int(alpha == 0) * 9,) * 1200)
    for policy, expected in (
        (FixedLength(gamma), sps_speedup(alpha, gamma, 6.0)),
        (Pearl(gamma), pearl_speedup(alpha, gamma, 6.0)),
        (Windows(gamma, 0, 2, is_serial_after_miss=False), specbranch_preverify_speedup(alpha, gamma, alpha, 6.0)),
    ):
        summary = summarise(simulate(policy, [trace], ConstantLatency(draft_s=1.0, verify_s=6.0)))
        assert 6.0 * summary.decode_tokens_per_s == pytest.approx(float(expected), rel=0.01), policy


def test_autoregressive_decoding_is_the_unit_of_speed() -> None:
    trace = geometric_traces(0.7, 0.5, seed=0, num_tokens=300)[0]
    summary = summarise(simulate(Autoregressive(), [trace], ConstantLatency(draft_s=1.0, verify_s=6.0)))
    assert 6.0 * summary.decode_tokens_per_s == pytest.approx(1.0)
    assert float(sps_speedup(0.7, 0, 6.0)) == pytest.approx(1.0)


def stationary(transitions: np.ndarray) -> np.ndarray:
    """Long-run shares of a Markov chain's states."""
    size = len(transitions)
    equations = np.vstack([transitions.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(equations, np.array([0.0] * size + [1.0]), rcond=None)[0]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_renewal_form_is_its_markov_chain_and_theorem_1_errs_as_stated(alpha: float, gamma: int) -> None:
    survives = alpha**gamma
    share = stationary(np.array([[survives, 1 - survives], [1.0, 0.0]]))[0]
    accepted = sum(alpha**i for i in range(1, gamma + 1))
    cost = 5.0
    exact = cost * share * accepted / max(gamma, cost)
    assert float(parallel_speedup_renewal(alpha, gamma, cost, correction=False)) == pytest.approx(exact)
    corrected = exact + cost * share * (1 - survives) / max(gamma, cost)
    assert float(parallel_speedup_renewal(alpha, gamma, cost)) == pytest.approx(corrected)
    published = float(parallel_speedup_theorem1(alpha, gamma, cost)) / exact
    assert published == pytest.approx((2 - survives) * (1 + survives) / 2)
    assert 1 <= published <= 9 / 8 + 1e-12


def test_dsi_matches_its_published_cost_model() -> None:
    """k c for each accepted block, k c + 1 at a rejection, never more than plain decoding (target time 1)."""
    rng = np.random.default_rng(5)
    for alpha, lookahead, cost_ratio in ((0.5, 3, 10.0), (0.9, 5, 10.0), (0.8, 1, 4.0), (0.2, 8, 2.0)):
        num_runs = 100_000
        accepted = rng.geometric(1 - alpha, num_runs) - 1  # before each rejection
        block_s = lookahead / cost_ratio
        times = (accepted // lookahead + 1) * block_s + 1
        expected = max(1.0, float((accepted + 1).sum() / times.sum()))
        assert float(dsi_speedup(alpha, lookahead, cost_ratio)) == pytest.approx(expected, rel=0.01)


def test_ssd_theorem_7_is_the_outcome_cache_in_other_words() -> None:
    alpha, gamma, cost, hit = 0.8, 4, 10.0, 0.7
    emitted = float(expected_emitted_tokens(alpha, gamma))
    theorem = ssd_speedup(hit, emitted, emitted, primary=gamma / cost, backup=gamma / cost)
    assert float(theorem) == pytest.approx(float(outcome_cache_speedup(alpha, gamma, hit, cost)))


def test_pearl_is_specbranch_with_one_branch() -> None:
    alpha, gamma = np.meshgrid(np.linspace(0, 1, 21), np.arange(1, 12))
    one_branch = specbranch_preverify_tokens_per_step(alpha, gamma - 1, alpha)
    np.testing.assert_allclose(one_branch, pearl_tokens_per_step(alpha, gamma), rtol=1e-12)


def test_best_draft_length_beats_its_neighbours() -> None:
    alphas, costs = np.meshgrid([0.3, 0.6, 0.9], [2.0, 8.0, 20.0])
    best = best_sps_draft_length(alphas, costs)
    at_best = sps_speedup(alphas, best, costs)
    assert (at_best >= sps_speedup(alphas, best + 1, costs)).all()
    assert (at_best >= sps_speedup(alphas, np.maximum(best - 1, 1), costs)).all()


def test_a_window_up_to_the_cap_hides_behind_the_target() -> None:
    for cost, slowdown in ((8.0, 1.0), (8.0, 1.3), (5.9, 1.1)):
        cap = int(draft_length_cap(cost, slowdown))
        assert cap * slowdown <= cost < (cap + 1) * slowdown


def test_ideal_overlap_at_most_doubles_the_speed() -> None:
    gamma = np.arange(1, 20)
    ratio = ideal_parallel_speedup(gamma, 7.0) / ideal_sps_speedup(gamma, 7.0)
    assert ratio.max() == pytest.approx(2.0)
    assert int(gamma[ratio.argmax()]) == 7


def test_geometric_fanout_spends_its_budget_where_outcomes_are_likely() -> None:
    fanout = geometric_fanout(0.7, 6, 20.0)
    assert fanout.sum() == pytest.approx(20.0)
    assert (np.diff(fanout[:-1]) < 0).all()
    assert fanout[-1] > fanout[-2]


@pytest.mark.parametrize("formula", [expected_emitted_tokens, expected_accepted_tokens, pearl_tokens_per_step])
def test_scalars_and_arrays_agree_up_to_alpha_1(formula: Callable[..., np.ndarray]) -> None:
    alphas, gammas = np.array([0.0, 0.5, 1 - 1e-12, 1.0]), np.array([1, 4, 9, 30])
    together = formula(alphas[:, None], gammas)
    one_by_one = [[float(formula(alpha, gamma)) for gamma in gammas] for alpha in alphas]
    np.testing.assert_allclose(together, one_by_one)
    np.testing.assert_allclose(together[-2], together[-1], rtol=1e-9)

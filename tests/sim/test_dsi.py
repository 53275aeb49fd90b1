"""Distributed speculative inference against its closed form, its limits, and hand computation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.decoding.acceptance_models import Geometric
from sim.decoding.closed_forms import dsi_servers, dsi_speedup
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.dsi import Dsi, DsiRun, simulate_dsi
from sim.engine import simulate
from sim.latency.constant import ConstantLatency
from traces.schema import FinishReason, OpShape, RequestTrace


def trace_of(ranks: Sequence[int]) -> RequestTrace:
    return RequestTrace(0, "p", 5, len(ranks), 1.0, FinishReason.MAX_TOKENS, tuple(ranks))


def geometric(alpha: float, num_tokens: int, num_requests: int, seed: int = 0) -> list[RequestTrace]:
    rngs = np.random.default_rng(seed).spawn(num_requests)
    return [Geometric(alpha=alpha).sample(num_tokens, index, rng) for index, rng in enumerate(rngs)]


def textbook(cost_ratio: float) -> ConstantLatency:
    return ConstantLatency(draft_s=1 / cost_ratio, verify_s=1.0)


@pytest.mark.parametrize("has_plain_server", [False, True])
@pytest.mark.parametrize(
    ("alpha", "lookahead", "cost_ratio"), [(0.5, 1, 6.0), (0.6, 3, 12.0), (0.8, 5, 10.0), (0.95, 4, 4.0)]
)
def test_the_speed_is_that_of_the_closed_form(
    alpha: float, lookahead: int, cost_ratio: float, has_plain_server: bool
) -> None:
    servers = int(dsi_servers(lookahead, cost_ratio)) + has_plain_server
    num_tokens = 3000
    run = simulate_dsi(
        Dsi(lookahead, servers, has_plain_server), geometric(alpha, num_tokens, 16), textbook(cost_ratio)
    )
    speedups = num_tokens / np.array(run.decode_s)
    expected = float(dsi_speedup(alpha, lookahead, cost_ratio, has_plain_server=has_plain_server))
    error, stderr = speedups.mean() - expected, speedups.std(ddof=1) / math.sqrt(len(speedups))
    assert abs(error) <= 4 * stderr, f"{error=:.4f} is {error / stderr:.1f} standard errors off {expected:.3f}"
    assert abs(error) <= 0.01 * expected
    assert run.most_servers <= servers


def test_fewer_servers_than_needed_are_slower_and_more_change_nothing() -> None:
    traces = geometric(0.9, 2000, 4)
    speeds = [simulate_dsi(Dsi(2, n, False), traces, textbook(12.0)).tokens_per_s for n in (1, 3, 6, 9)]
    assert speeds[0] < speeds[1] < speeds[2]
    assert speeds[3] == pytest.approx(speeds[2], rel=1e-3)  # but for servers that come free at the very instant


@pytest.mark.parametrize("lookahead", [1, 3, 7])
def test_without_any_acceptance_it_is_speculation_of_one_block_or_plain_decoding(lookahead: int) -> None:
    trace = trace_of([1] * 40)
    latency = textbook(8.0)
    serial = simulate(FixedLength(lookahead), [trace], latency).requests[0]
    blocks = simulate_dsi(Dsi(lookahead, 4, False), [trace], latency)
    # The last round of speculative sampling knows that one token is left and drafts none; DSI drafts up to the end.
    clipped = sum(lookahead - min(lookahead, 39 - position) for position in range(40)) / 8
    short = sum(lookahead - min(lookahead, 40 - position) for position in range(40)) / 8
    assert blocks.decode_s[0] + short == pytest.approx(serial.finish_s + clipped)
    assert blocks.num_rejections == 40
    plain = simulate_dsi(Dsi(lookahead, 4, True), [trace], latency)
    assert plain.decode_s[0] == pytest.approx(40.0)


@pytest.mark.parametrize(("num_verifiers", "lookahead"), [(1, 2), (2, 2), (3, 4), (6, 2)])
def test_with_full_acceptance_it_runs_at_the_speed_of_the_drafter_or_of_its_servers(
    num_verifiers: int, lookahead: int
) -> None:
    run = simulate_dsi(Dsi(lookahead, num_verifiers, False), [trace_of([0] * 400)], textbook(8.0))
    blocks = 400 / lookahead
    block_s = max(lookahead / 8, 1 / num_verifiers)
    assert run.decode_s[0] == pytest.approx(blocks * block_s, abs=2.0)
    assert run.num_rejections == run.num_cancelled == 0
    assert run.num_drafted == 400


def test_one_server_that_decodes_plainly_is_autoregressive_decoding() -> None:
    traces = geometric(0.7, 50, 3)
    latency = ConstantLatency(draft_s=0.1, verify_s=1.0)
    plain = simulate(Autoregressive(), traces, latency)
    run = simulate_dsi(Dsi(4, 1, True), traces, latency)
    assert sum(run.decode_s) == pytest.approx(plain.requests[-1].finish_s)
    assert (run.num_drafted, run.most_servers) == (0, 1)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 1), min_size=1, max_size=40),
    lookahead=st.integers(1, 6),
    num_servers=st.integers(1, 5),
    cost_ratio=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
)
def test_no_request_ever_takes_longer_than_plain_decoding(
    ranks: list[int], lookahead: int, num_servers: int, cost_ratio: float
) -> None:
    run = simulate_dsi(Dsi(lookahead, num_servers, True), [trace_of(ranks)], textbook(cost_ratio))
    assert run.decode_s[0] <= len(ranks) + 1e-9
    assert run.most_servers <= num_servers
    assert run.num_rejections <= sum(ranks)
    assert run.num_cancelled <= run.num_forwards
    assert run.target_busy_s <= num_servers * run.decode_s[0] + 1e-9
    assert run.draft_busy_s <= run.decode_s[0] + 1e-9


def test_verifications_of_successive_blocks_overlap_by_hand() -> None:
    # Blocks of 2 take 2 s to draft and 10 s to verify: they report at 12, 14, 16 s; the third is wrong in its first token.
    latency = ConstantLatency(draft_s=1.0, verify_s=10.0)
    run = simulate_dsi(Dsi(2, 9, False), [trace_of([0, 0, 0, 0, 1, 0, 0])], latency)
    assert run.decode_s == (16 + 12.0,)  # then one block of two tokens
    assert run.num_rejections == 1
    assert run.most_servers == 4  # the fourth block held what was left of the request
    assert run.num_cancelled == 1
    queued = simulate_dsi(Dsi(2, 1, False), [trace_of([0, 0, 0, 0, 1, 0, 0])], latency)
    assert queued.decode_s == (32 + 12.0,)
    with_plain = simulate_dsi(Dsi(2, 9, True), [trace_of([1, 0, 0])], latency)
    assert with_plain.decode_s == (10 + 12.0,)


class Noisy(ConstantLatency):
    """Constant means; draws are exponential."""

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return float(self.mean_s(op) * rng.exponential())


def test_drawn_times_keep_every_token_and_every_server_in_its_place() -> None:
    traces = geometric(0.8, 60, 5)

    def run() -> DsiRun:
        return simulate_dsi(Dsi(3, 4), traces, Noisy(draft_s=0.2, verify_s=1.0), rng=np.random.default_rng(3))

    first = run()
    assert first == run()
    assert first.num_tokens == 300
    assert first.most_servers <= 4


@pytest.mark.parametrize(("setting", "told"), [({"lookahead": 0}, "lookahead"), ({"num_servers": 0}, "num_servers")])
def test_settings_are_checked(setting: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=f"{told} must be at least 1"):
        Dsi(**setting)

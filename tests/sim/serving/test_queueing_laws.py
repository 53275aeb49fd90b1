"""The cluster against the textbook: M/D/1, M/M/1 and M/M/c, Little's law, and the delay of an affine step under load."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.serving.cluster import Router, ServedRun, serve
from sim.serving.costs import SummedCosts
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.run_lengths import drawn_runs
from sim.serving.settings import Placement, Server
from traces.workload import Workload

NUM_REQUESTS = 40_000
TICK_S = 1e-5


class PerToken:
    """A step costs its new tokens; nothing else."""

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return TICK_S * num_tokens

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 0.0


def queue_of(service_s: np.ndarray, rate: float, num_servers: int, seed: int) -> np.ndarray:
    """(requests,) times in the system of single-token requests whose prompts take service_s."""
    rng = np.random.default_rng(seed)
    count = len(service_s)
    workload = Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, count)),
        prompt_tokens=np.maximum(1, np.rint(service_s / TICK_S)).astype(np.int64),
        output_tokens=np.ones(count, dtype=np.int64),
        max_concurrency=num_servers
        if num_servers > 1
        else None,  # the clients are the one queue in front of all servers
    )
    table = drawn_runs([0.5], count, 1, rng)
    run = serve(
        workload,
        Server(max_num_seqs=1, max_num_batched_tokens=1 << 40),
        lambda: SummedCosts(PerToken()),
        lambda: LengthRounds(table, FixedLengthRule(0)),
        num_replicas=num_servers,
        router=Router.LEAST_OUTSTANDING_TOKENS,
    )
    stays_s: np.ndarray = run.last_s - workload.arrival_s
    return stays_s


def check_mean(stays_s: np.ndarray, expected_s: float) -> None:
    """Within 3 standard errors, by means of 40 stretches: neighbours in a queue are not independent."""
    means = stays_s[len(stays_s) // 10 :].reshape(-1, len(stays_s) * 9 // 400).mean(axis=1)
    error, stderr = means.mean() - expected_s, means.std(ddof=1) / math.sqrt(len(means))
    assert abs(error) <= 3 * stderr, f"{error / stderr:.1f} standard errors from {expected_s:.4f} s"
    assert stderr < 0.06 * expected_s


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_constant_service_waits_as_in_m_d_1(load: float) -> None:
    stays_s = queue_of(np.full(NUM_REQUESTS, 1.0), load, 1, seed=1)
    check_mean(stays_s, 1 + load / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_exponential_service_waits_as_in_m_m_1(load: float) -> None:
    stays_s = queue_of(np.random.default_rng(7).exponential(1.0, NUM_REQUESTS), load, 1, seed=2)
    check_mean(stays_s, 1 / (1 - load))


def test_several_servers_wait_as_in_m_m_c() -> None:
    servers, load = 3, 0.7
    offered = servers * load
    stays_s = queue_of(np.random.default_rng(8).exponential(1.0, NUM_REQUESTS), offered, servers, seed=3)
    tail = offered**servers / math.factorial(servers) / (1 - load)
    waits = tail / (sum(offered**k / math.factorial(k) for k in range(servers)) + tail)  # Erlang C
    check_mean(stays_s, 1 + waits / (servers - offered))


class Affine:
    """A step of b running requests takes a + c b seconds."""

    a, c = 0.01, 0.002

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return self.a + self.c * num_requests

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 0.0


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_delay_follows_the_load_as_in_a_mean_field(share: float) -> None:
    """Beside a request of n steps there are r L others: L = n (a + c (1 + r L)), so L = n (a + c) / (1 - r n c).

    (The form of arXiv:2605.15051.) The batch fluctuates and an arrival waits for a step's end, hence the few percent.
    """
    steps, model = 100, Affine()
    rate = share / (steps * model.c)
    rng = np.random.default_rng(5)
    count = 6_000
    workload = Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, count)),
        prompt_tokens=np.ones(count, dtype=np.int64),
        output_tokens=np.full(count, steps),
    )
    table = drawn_runs([0.5], count, steps, rng)
    server = Server(max_num_seqs=1000)
    run = serve(workload, server, lambda: SummedCosts(model), lambda: LengthRounds(table, FixedLengthRule(0)))
    measured = float((run.last_s - run.sent_s)[count // 10 :].mean())
    expected = steps * (model.a + model.c) / (1 - rate * steps * model.c)
    assert measured == pytest.approx(expected, rel=0.05)


class SmallServer(PerToken):
    """A server's costs in small: a floor, tokens, contexts."""

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 0.03 + 1e-4 * num_tokens + 1e-7 * context_tokens

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        return 0.002 + 1e-6 * num_tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    num_replicas=st.integers(1, 3),
    draft_length=st.integers(0, 5),
    max_num_seqs=st.integers(1, 12),
    kv_tokens=st.one_of(st.none(), st.integers(700, 2000)),
    max_concurrency=st.one_of(st.none(), st.integers(1, 20)),
    chunk=st.integers(16, 512),
    placement=st.sampled_from(list(Placement)),
    emits=st.booleans(),
)
def test_requests_and_tokens_are_conserved_whatever_the_setting(
    seed: int,
    num_replicas: int,
    draft_length: int,
    max_num_seqs: int,
    kv_tokens: int | None,
    max_concurrency: int | None,
    chunk: int,
    placement: Placement,
    emits: bool,
) -> None:
    """`serve` itself checks tokens, requests and Little's law; here besides memory, order and work."""
    rng = np.random.default_rng(seed)
    count = 40
    workload = Workload(
        arrival_s=np.cumsum(rng.exponential(0.05, count)),
        prompt_tokens=rng.integers(1, 300, count),
        output_tokens=rng.integers(1, 100, count),
        max_concurrency=max_concurrency,
    )
    server = Server(
        max_num_seqs=max_num_seqs,
        kv_tokens=kv_tokens,
        max_num_batched_tokens=chunk,
        lookahead_tokens=draft_length,
        prefill_emits=emits,
        delivers_after_drafting=emits,
    )
    table = drawn_runs([0.8, 0.6], count, 100, rng)
    ends: dict[int, float] = {}
    peaks = [0]

    def watch(replica: int, record: object) -> None:
        start_s, end_s, plan = record  # type: ignore[misc]
        assert start_s >= ends.get(replica, 0.0) - 1e-12
        assert end_s >= start_s
        ends[replica] = end_s
        rounds = plan.rounds
        used = plan.context_tokens + sum(chunk.num_tokens for chunk in plan.chunks)
        if rounds is not None:
            used += rounds.num_pending + plan.num_running
            assert plan.num_running <= max_num_seqs
        peaks.append(used)

    def run_it() -> ServedRun:
        ends.clear()
        return serve(
            workload,
            server,
            lambda: SummedCosts(SmallServer()),
            lambda: LengthRounds(table, FixedLengthRule(draft_length)),
            num_replicas=num_replicas,
            placement=placement,
            on_step=watch,
        )

    run = run_it()
    assert (run.num_output == workload.output_tokens).all()
    assert (run.sent_s >= workload.arrival_s).all()
    if kv_tokens is not None:
        assert max(peaks) <= kv_tokens
    if max_concurrency is not None:
        assert run.max_in_system <= max_concurrency
    again = run_it()
    assert (again.last_s == run.last_s).all(), "two runs differ"

"""Prices at which the answer flips, against arithmetic on a trace that is simple enough for it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.explore.flips import vary_prices
from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import replay
from sim.latency.constant import ConstantLatency
from sim.latency.placement import AdjustedLatency
from sim.latency.varied import VariedLatency
from sim.sweep.sweep import sweep
from traces.schema import Actor, OpKind, OpShape

LATENCY = ConstantLatency(draft_s=0.002, verify_s=0.010)
LENGTH = 3
TRACES = [Geometric(alpha=0.7).sample(60, index, rng) for index, rng in enumerate(np.random.default_rng(3).spawn(12))]


def test_the_flip_to_plain_decoding_is_where_a_round_costs_what_it_yields() -> None:
    policy = FixedLength(LENGTH)
    rounds = [round_ for trace in TRACES for round_ in replay(policy, trace)]
    tokens = sum(trace.num_tokens for trace in TRACES)
    drafted = sum(round_.num_serial for round_ in rounds)
    verified = sum(round_.num_pending for round_ in rounds)
    flips = {(flip.name, flip.flips_at > flip.value): flip for flip in vary_prices(TRACES, LATENCY, [], policy).flips()}
    # tokens * verify = rounds * verify + drafted * draft (the first forward after a round reads nothing for free)
    draft_share = (tokens - len(rounds)) / drafted
    draft = flips["a draft forward", True]
    assert draft.becomes == "autoregressive"
    assert draft.flips_at == pytest.approx(draft_share, rel=0.02)
    # each further token of a verification costs x more: rounds + drafted * draft + verified * x = tokens, x of a verification
    further = (tokens - len(rounds) - drafted * LATENCY.draft_s / LATENCY.verify_s) / verified
    widening = flips["verifying 4 tokens", True]
    assert widening.becomes == "autoregressive"
    assert widening.flips_at == pytest.approx(1 + 3 * further, rel=0.02)
    assert ("verifying 4 tokens", False) not in flips
    assert "flips to plain decoding if verifying 4 tokens costs" in widening.sentence()


def test_another_setting_of_the_same_method_is_no_flip() -> None:
    prices = vary_prices(TRACES, LATENCY, [FixedLength(2), FixedLength(6)], FixedLength(3))
    assert {flip.becomes for flip in prices.flips()} == {"autoregressive"}
    assert prices.policies[0] == "fixed_length:draft_length=3"


def test_prices_as_they_are_give_the_speeds_of_the_sweep() -> None:
    policies = [FixedLength(3), Autoregressive()]
    prices = vary_prices(TRACES, LATENCY, policies, policies[0])
    for lever in prices.levers:
        assert lever.speeds[lever.today] == pytest.approx(sweep(policies, TRACES, LATENCY).decode_tokens_per_s)


def test_varied_latency_changes_one_price_and_nothing_else() -> None:
    varied = VariedLatency(base=AdjustedLatency(LATENCY, 2.0), verify_further_s=0.001, host_further_s=0.003)
    shape = OpShape(Actor.TARGET, OpKind.VERIFY, 4, 1, 100)
    assert varied.mean_s(shape) == pytest.approx(0.013)
    assert varied.mean_s(shape._replace(num_tokens=1)) == pytest.approx(0.010)
    assert varied.mean_s(OpShape(Actor.DRAFT, OpKind.DRAFT, 1, 1, 100)) == pytest.approx(0.004)
    assert varied.mean_s(OpShape(Actor.HOST, OpKind.HOST, 3, 1, 100)) == pytest.approx(0.003)
    cheaper = VariedLatency(base=LATENCY, verify_further_s=-0.001)
    assert cheaper.mean_s(shape) == pytest.approx(0.010)  # never less than one token's
    assert varied.draw_s(shape, np.random.default_rng(0)) == pytest.approx(0.013)

"""A method named without settings: what it resolves to works on any pair, follows the hardware, and can be pasted back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from analysis.tuning.auto import is_auto, resolution_lines, resolve
from sim.decoding.policies.catalog import POLICIES, PolicyError, label_of, parse_policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.sweep.sweep import sweep
from tests.analysis.tuning.exhaustive import flat_latency
from traces.schema import RequestTrace


@pytest.fixture
def traces(make_trace: Callable[..., RequestTrace]) -> list[RequestTrace]:
    return [make_trace(num_tokens=40, seed=seed, acceptance=0.7, tail_depth=32) for seed in range(4)]


def test_every_method_by_name_alone_resolves_to_a_label_that_can_be_pasted_back(traces: list[RequestTrace]) -> None:
    latency = flat_latency(8.0)
    names = [name for name in POLICIES if name != "prompt_lookup"]
    resolved = resolve(names, traces, latency)
    assert list(resolved) == names
    speeds = sweep(list(resolved.values()), traces, latency).decode_tokens_per_s  # they all run on a pair without H-RAD
    by_name = dict(zip(names, speeds, strict=True))
    assert by_name["specbranch"] >= by_name["pearl"]
    assert by_name["outcome_hedging"] >= max(by_name["pearl"], by_name["fixed_length"], by_name["specbranch"])
    for name, policy in resolved.items():
        assert resolve([label_of(policy)]) == {label_of(policy): policy}
        assert parse_policy(label_of(policy)) == policy
        assert any(label_of(policy) in line for line in resolution_lines(resolved)) == is_auto(name)
    assert isinstance(resolved["specbranch"], SpecBranch)
    assert not resolved["specbranch"].uses_hrad
    assert resolved["autoregressive"] == Autoregressive()


def test_settings_follow_the_hardware(traces: list[RequestTrace]) -> None:
    near, far = (resolve(["pearl"], traces, flat_latency(ratio))["pearl"] for ratio in (3.0, 14.0))
    assert isinstance(near, Pearl)
    assert isinstance(far, Pearl)
    assert near.draft_length <= 4 < far.draft_length


def test_stated_settings_keep_their_meaning_and_need_no_measurement() -> None:
    resolved = resolve(["specbranch:max_branches=2", "autoregressive"])
    assert resolved["specbranch:max_branches=2"] == SpecBranch(max_branches=2)


def test_a_name_and_the_label_that_it_comes_to_are_one_policy_given_twice(traces: list[RequestTrace]) -> None:
    latency = flat_latency(6.0)
    label = label_of(resolve(["pearl"], traces, latency)["pearl"])
    with pytest.raises(PolicyError, match="is given twice, as pearl: both are"):
        resolve(["pearl", label], traces, latency)


def test_a_predictor_that_does_not_pay_is_left_out(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(num_tokens=40, seed=seed, tail_depth=24, with_classes=True) for seed in range(3)]
    always_reject = [replace(trace, class_probs=((1.0, 0.0, 0.0),) * 41) for trace in traces]
    policy = resolve(["specbranch"], always_reject, flat_latency(8.0))["specbranch"]
    assert isinstance(policy, SpecBranch)
    assert not policy.uses_hrad

"""Drafts that run free: chosen where the target's time varies as it was recorded to, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from analysis.explore.inputs import read_latency
from analysis.tuning.choosing import choose_policies
from analysis.tuning.free_running import with_free_drafts
from analysis.tuning.search import Chosen
from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.engine import simulate, summarise
from sim.latency.base import LatencyModel
from sim.latency.constant import ConstantLatency
from traces.schema import OpKind, OpShape, RequestTrace

CALIBRATION = Path(__file__).parents[2] / "data" / "run_v1" / "calibration.json"


@dataclass(frozen=True)
class Spread(ConstantLatency):
    """A target whose forwards take so many times their mean, each ratio as often as it was recorded; `wider` times as far
    apart, in logarithms."""

    wider: float = 1.0

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        mean_s = self.mean_s(op)
        if op.kind != OpKind.VERIFY:
            return mean_s
        ratios = recorded_ratios() ** self.wider
        return mean_s * float(rng.choice(ratios) / ratios.mean())


def recorded_ratios() -> np.ndarray:
    return np.array(read_latency(CALIBRATION).calibration.fits["verify"].ratios)  # type: ignore[attr-defined]  # a fitted one


def traces_of(alpha: float, *, num: int = 5, num_tokens: int = 300) -> list[RequestTrace]:
    rng = np.random.default_rng(3)
    return [Geometric(alpha=alpha).sample(num_tokens, request_id, rng) for request_id in range(num)]


def chosen_on(traces: list[RequestTrace], latency: LatencyModel) -> dict[str, Chosen]:
    chosen = choose_policies(traces, latency, max_tried=60, names=["pearl", "fixed_length"])
    return with_free_drafts(chosen, traces, latency)


def test_a_draft_runs_free_where_it_pays_and_the_remark_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    traces, ratios = traces_of(0.9), recorded_ratios()
    monkeypatch.setattr("tests.analysis.tuning.test_free_running.recorded_ratios", lambda: ratios)
    constant = chosen_on(traces, ConstantLatency(draft_s=1 / 6, verify_s=1.0))
    assert constant["pearl"].policy.num_further == 0  # type: ignore[attr-defined]
    assert constant["pearl"].remark == ""
    varied = chosen_on(traces, Spread(draft_s=1 / 6, verify_s=1.0, wider=3.0))
    assert varied["pearl"].policy.num_further > 0  # type: ignore[attr-defined]
    assert "pearl's draft runs free: +" in varied["pearl"].remark
    assert varied["pearl"].tokens_per_s > constant["pearl"].tokens_per_s * 1.01
    assert varied["fixed_length"] == constant["fixed_length"]


@pytest.mark.slow
@pytest.mark.parametrize(("wider", "least"), [(1.0, -0.005), (4.0, 0.05)])
def test_what_a_draft_that_runs_free_gains_at_the_recorded_spread(
    wider: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a quiet recording's spread it gains little, and loses nothing; of a loaded host's (four times as wide) 5%."""
    ratios = recorded_ratios()
    monkeypatch.setattr("tests.analysis.tuning.test_free_running.recorded_ratios", lambda: ratios)

    def speed(policy: Pearl, traces: list[RequestTrace], latency: LatencyModel) -> float:
        run = simulate(policy, traces, latency, rng=np.random.default_rng(0), record_ops=False)
        return summarise(run).decode_tokens_per_s

    for alpha in (0.75, 0.85, 0.9):
        for ratio in (4, 6, 10):
            traces, latency = traces_of(alpha), Spread(draft_s=1 / ratio, verify_s=1.0, wider=wider)
            fixed = max(speed(Pearl(length), traces, latency) for length in range(max(2, ratio - 4), ratio + 6))
            free = max(speed(Pearl(1, most), traces, latency) for most in (ratio, 2 * ratio))
            gain = free / fixed - 1
            print(f"{wider:g} times the recorded spread, alpha = {alpha}, c = {ratio}: {gain:+.1%}")
            assert gain >= least

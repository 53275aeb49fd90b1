"""Any latency model can be explored and simulated: a class of one's own, without a file and without a calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from analysis.check.predict import predict
from analysis.check.validate import validate
from analysis.explore.exploration import explore_study
from analysis.explore.simulation import simulate_run
from analysis.figures.figures import draw_figures
from analysis.study.study import Conditions, Study
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import Array, PlainLatency
from tests.analysis.made_up_run import write_run
from traces.folder.run import read_run
from traces.schema import OpShape

MEASURED = Path(__file__).parents[2] / "data" / "run_v1"  # an executed run


@dataclass(frozen=True)
class Toy(PlainLatency):
    """A target forward takes a second, and everything else nothing but what the draft takes."""

    draft_s: float

    def mean_s(self, op: OpShape) -> float:
        return float(self.mean_array(op.kind, op.num_tokens, op.num_branches, op.context_tokens, actor=op.actor))

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.mean_s(op)

    def mean_array(
        self,
        kind: str,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: str | None = None,
    ) -> Array:
        shape = np.broadcast_shapes(np.shape(num_tokens), np.shape(num_branches), np.shape(context_tokens))
        return np.full(shape, {"verify": 1.0, "draft": self.draft_s, "look": self.draft_s}.get(kind, 0.0))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made-up") / "run", num_requests=4)


STUDY = Study(
    policies=["autoregressive", "pearl:draft_length=3", "fixed_length:draft_length=2"],
    conditions=Conditions(cost_ratios=["measured", 2.0], interference=[1.5]),
)


@pytest.mark.parametrize("kind", ["mean", "drawn"])
def test_a_latency_model_of_ones_own_is_explored_end_to_end(run_dir: Path, tmp_path: Path, kind: str) -> None:
    toy = Toy(draft_s=0.25)
    study = Study(policies=STUDY.policies, conditions=STUDY.conditions, latency=kind)  # type: ignore[arg-type]
    explored = explore_study(run_dir, tmp_path / "explored", study, latency=toy)
    own = explored.table[explored.table.scenario == "T=1 two_devices"].set_index("policy")
    traces = read_run(run_dir).traces()
    pearl = predict([Pearl(3)], traces, toy, seed=None).speeds[0]
    assert own.tokens_per_s["autoregressive"] == pytest.approx(1.0)  # a token a second
    assert own.tokens_per_s["pearl:draft_length=3"] == pytest.approx(pearl.tokens_per_s)
    assert pearl.tokens_per_s == pytest.approx(pearl.tokens_per_target_forward)  # drafts hide behind verifications
    assert own.cost_ratio.unique().tolist() == [4.0]
    assert list(explored.effects) == []  # the toy does not say how sure it is


def test_an_exploration_that_was_cut_short_goes_on_with_the_same_model_only(run_dir: Path, tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done:
            raise CutError

    with pytest.raises(CutError):
        explore_study(run_dir, tmp_path / "out", STUDY, latency=Toy(draft_s=0.25), progress=cut)
    with pytest.raises(ValueError, match="another study, run or calibration"):
        explore_study(run_dir, tmp_path / "out", STUDY, latency=Toy(draft_s=0.3))
    assert explore_study(run_dir, tmp_path / "out", STUDY, latency=Toy(draft_s=0.25)).num_reused_tasks == 1


@pytest.mark.long
def test_its_figures_ask_for_the_model_again(run_dir: Path, tmp_path: Path) -> None:
    explore_study(run_dir, tmp_path / "explored", STUDY, latency=Toy(draft_s=0.25), is_sensitive=False)
    with pytest.raises(ValueError, match="a latency model that has no file; give it as latency"):
        draw_figures(tmp_path / "explored", tmp_path / "figures")
    assert draw_figures(tmp_path / "explored", tmp_path / "figures", latency=Toy(draft_s=0.25))


def test_a_run_is_simulated_with_it(run_dir: Path, tmp_path: Path) -> None:
    speeds = simulate_run(run_dir, tmp_path / "out", [Autoregressive(), Pearl(3)], latency=Toy(draft_s=0.1)).speeds
    assert speeds[0].tokens_per_s == pytest.approx(1.0)
    assert read_run(tmp_path / "out" / "01-pearl").config["calibration"] == "Toy(draft_s=0.1)"


def test_a_run_is_validated_with_it() -> None:
    """The toy says that a token takes a second: its error is that, whatever the machine did."""
    measured = read_run(MEASURED)
    validation = validate(measured, measured.traces(), Toy(draft_s=0.25))
    plain = [check for check in validation.policies if check.policy == "autoregressive"]
    assert plain
    for check in plain:
        assert check.predicted_tokens_per_s == pytest.approx(1.0)
        assert check.relative_error == pytest.approx(1 / check.measured_tokens_per_s - 1)
        assert check.acceptance_error == pytest.approx(0.0)  # the very prompts that were measured

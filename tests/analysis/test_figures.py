"""Every figure of an exploration is drawn from its folder, with the lines and bounds that it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import figures, plots
from analysis.bounds import entropy_speedups
from analysis.exploration import explore_study
from analysis.figures import Told, draw_figures
from analysis.study import Conditions, Family, Range, Study
from sim.latency import ConstantLatency
from tests.analysis.made_up_run import write_run

STUDY = Study(
    policies=[
        "autoregressive",
        Family(method="fixed_length", settings={"draft_length": Range(first=1, last=4)}),
        Family(
            method="specbranch",
            settings={"draft_length": [3, 5], "max_branches": [1, 4], "epsilon": [0.2, 0.4], "uses_hrad": [False]},
        ),
    ],
    conditions=Conditions(interference=[1.5]),
)


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    write_run(folder / "run", temperatures=(1.0,))
    explore_study(folder / "run", folder / "explored", STUDY, is_sensitive=False)
    return folder / "explored"


@pytest.fixture(scope="module")
def drawn(explored: Path) -> dict[str, tuple[Figure, Told]]:
    """The figures with their data, caught on their way to the disk."""
    caught: dict[str, tuple[Figure, Told]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, draw in figures.FIGURES.items():

            def keep(axes: object, told: Told, name: str = name, draw: object = draw) -> object:
                caught[name] = axes.figure, told  # type: ignore[attr-defined]
                return draw(axes, told)  # type: ignore[operator]

            patch.setitem(figures.FIGURES, name, keep)
        paths = draw_figures(explored, explored.parent / "figures")
    assert [path.name for path in paths] == [f"{name}-T1.png" for name in figures.FIGURES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return caught


def test_speedups_stand_beside_closed_forms_measurements_and_oracles(drawn: dict[str, tuple[Figure, Told]]) -> None:
    figure, told = drawn["speedup_by_draft_length"]
    axes = figure.axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert {
        "speculative sampling, predicted",
        "speculative sampling, closed form",
        "SpecBranch, predicted",
        "SpecBranch, closed form",
        "serial oracle",
        "oracle with 1 branch",
        "oracle with 4 branches",
        "overlap oracle",
    } <= set(lines)
    assert "entropy bound, leading term" not in lines  # a made-up run has no target
    simulated = lines["speculative sampling, predicted"].get_ydata()
    assert simulated == pytest.approx(told.table[told.table.method == "fixed_length"].speedup.tolist())
    assert (np.asarray(lines["serial oracle"].get_ydata())[:4] >= simulated).all()
    assert set(told.table.placement) == {"two_devices"}
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top > max(float(np.max(line.get_ydata())) for line in lines.values())


def test_of_several_thresholds_the_best_is_shown(drawn: dict[str, tuple[Figure, Told]]) -> None:
    figure, told = drawn["branches_by_draft_length"]
    rows = told.table[told.table.method == "specbranch"]
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown is not None
    best = rows.groupby(["max_branches", "draft_length"]).speedup.max().unstack().to_numpy()
    np.testing.assert_allclose(shown, best)
    assert "overlap oracle" in figure.axes[0].get_title()


def test_maps_are_starred_where_the_pair_stands(drawn: dict[str, tuple[Figure, Told]]) -> None:
    for name in ("break_even", "break_even_simulated"):
        figure, told = drawn[name]
        star = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "*")
        assert star.get_xydata().tolist() == [[told.cost_ratio, told.acceptance]]
        assert told.cost_ratio == pytest.approx(5, rel=0.1)
        assert "overlap oracle" in {text.get_text() for text in figure.axes[0].get_legend().get_texts()}


def test_a_cell_without_a_policy_is_never_the_best() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    table = pd.DataFrame({"draft_length": [3, 3, 5], "max_branches": [1, 4, 1], "speedup": [1.0, 1.2, 1.1]})
    axes = plots.branches_by_draft_length(figure.subplots(), table)
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[0, 1]]


def test_the_entropy_bound_as_a_speedup_pays_for_wider_verification() -> None:
    class Wider(ConstantLatency):
        def mean_array(self, kind: str, num_tokens: object, *rest: object, **named: object) -> np.ndarray:
            return np.asarray(1 + 0.5 * (np.asarray(num_tokens) - 1), float)

    h = float(np.log(8))
    table = entropy_speedups([h], [h**2], Wider(draft_s=1.0, verify_s=1.0), [1, 3, 15], 100)
    tokens = (h + h**2) * np.log([2, 4, 16]) / h**2
    assert table.tokens_per_forward.tolist() == pytest.approx(np.minimum(tokens, [2, 4, 16]).tolist())
    assert table.speedup.tolist() == pytest.approx((table.tokens_per_forward / [1.5, 2.5, 8.5]).tolist())


def test_only_an_exploration_is_drawn(explored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no exploration"):
        draw_figures(explored.parent / "run", tmp_path / "figures")
    assert not (tmp_path / "figures").exists()

"""Every figure of an exploration is drawn from its folder, with the lines and bounds that it promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.explore.exploration import explore_study
from analysis.figures import figures, plots
from analysis.figures.figures import Scenario, draw_figures
from analysis.papers.bounds import entropy_speedups
from analysis.papers.maps import closed_form_map, winners
from analysis.study.study import Conditions, Family, Range, Study
from sim.latency.constant import ConstantLatency
from sim.latency.fitted import FittedLatency
from sim.latency.placement import PlacementKind
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import calibrate
from traces.folder.run import Run, read_run

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
def drawn(explored: Path) -> dict[str, tuple[Figure, Scenario]]:
    """The figures with their data, caught on their way to the disk."""
    caught: dict[str, tuple[Figure, Scenario]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, draw in figures.FIGURES.items():

            def keep(axes: object, scenario: Scenario, name: str = name, draw: object = draw) -> object:
                caught[name] = axes.figure, scenario  # type: ignore[attr-defined]
                return draw(axes, scenario)  # type: ignore[operator]

            patch.setitem(figures.FIGURES, name, keep)
        paths = draw_figures(explored, explored.parent / "figures")
    assert [path.name for path in paths] == [f"{name}-T1.png" for name in figures.FIGURES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return caught


def test_speedups_stand_beside_closed_forms_measurements_and_oracles(drawn: dict[str, tuple[Figure, Scenario]]) -> None:
    figure, scenario = drawn["speedup_by_draft_length"]
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
    assert simulated == pytest.approx(scenario.table[scenario.table.method == "fixed_length"].speedup.tolist())
    assert (np.asarray(lines["serial oracle"].get_ydata())[:4] >= simulated).all()
    assert set(scenario.table.placement) == {"two_devices"}
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top > max(float(np.max(line.get_ydata())) for line in lines.values())


def test_of_several_thresholds_the_best_is_shown(drawn: dict[str, tuple[Figure, Scenario]]) -> None:
    figure, scenario = drawn["branches_by_draft_length"]
    rows = scenario.table[scenario.table.method == "specbranch"]
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown is not None
    best = rows.groupby(["max_branches", "draft_length"]).speedup.max().unstack().to_numpy()
    np.testing.assert_allclose(shown, best)
    assert "overlap oracle" in figure.axes[0].get_title()


def test_maps_are_starred_where_the_pair_stands(drawn: dict[str, tuple[Figure, Scenario]]) -> None:
    for name in ("break_even", "break_even_simulated"):
        figure, scenario = drawn[name]
        star = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "*")
        assert star.get_xydata().tolist() == [[scenario.cost_ratio, scenario.acceptance]]
        assert scenario.cost_ratio == pytest.approx(5, rel=0.1)
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
    with pytest.raises(ValueError, match="is not an exploration"):
        draw_figures(explored.parent / "run", tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_scenarios_that_were_not_recorded_are_drawn_as_what_they_are(
    explored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = Conditions(
        placements=[PlacementKind.SHARED_DEVICE],
        interference=[1.5],
        cost_ratios=[8.0],
        alignments=["geometric:alpha=0.9", "recorded"],
    )
    study = replace(STUDY, conditions=conditions)
    explore_study(explored.parent / "run", tmp_path / "explored", study, is_sensitive=False)
    scenario: dict[str, Scenario] = {}
    drawn = {"pareto": figures.FIGURES["pareto"], "scenario": lambda axes, one: scenario.update({one.stem: one})}
    monkeypatch.setattr(figures, "FIGURES", drawn)
    paths = draw_figures(tmp_path / "explored", tmp_path / "figures")
    sampled, recorded = (
        "T1-geometric_alpha=0.9-shared_device_interference=1.5-c=8",
        "T1-shared_device_interference=1.5-c=8",
    )
    assert [path.name for path in paths] == [f"pareto-{sampled}.png", f"pareto-{recorded}.png"]
    assert scenario[sampled].acceptance == pytest.approx(0.9, abs=0.02)
    assert scenario[sampled].is_sampled
    assert not scenario[recorded].is_sampled
    assert scenario[sampled].entropies.isna().all(axis=None)
    table = pd.read_parquet(tmp_path / "explored" / "results.parquet")
    for one in scenario.values():
        assert one.cost_ratio == pytest.approx(8.0)
        assert not one.measured
        assert len(one.table) == len(table) / 2 > 0
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = scenario[sampled].add_title(figure.subplots(), "why?", "star: this pair")
    assert (
        axes.get_title() == "T = 1: why?\n(geometric:alpha=0.9; shared_device:interference=1.5; c=8; star: this pair)"
    )


def test_a_link_is_no_part_of_a_pair_and_its_bounds(
    explored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(STUDY, conditions=Conditions(link_latency_s=[0.05], cost_ratios=[8.0]))
    explore_study(explored.parent / "run", tmp_path / "explored", study, is_sensitive=False)
    scenario: list[Scenario] = []
    monkeypatch.setattr(figures, "FIGURES", {"scenario": lambda axes, one: scenario.append(one)})
    draw_figures(tmp_path / "explored", tmp_path / "figures")
    assert scenario[0].cost_ratio == pytest.approx(8.0)
    assert (
        scenario[0].table.set_index("policy").speedup.drop("autoregressive") < 1
    ).all()  # its link costs more than all gains


def test_two_devices_as_calibrated_are_drawn_where_they_were_explored(
    explored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [PlacementKind.SHARED_DEVICE, PlacementKind.TWO_DEVICES]
    study = replace(STUDY, conditions=Conditions(placements=both, interference=[1.5]))
    explore_study(explored.parent / "run", tmp_path / "explored", study, is_sensitive=False)
    stems: list[str] = []
    monkeypatch.setattr(figures, "FIGURES", {"scenario": lambda axes, scenario: stems.append(scenario.stem)})
    draw_figures(tmp_path / "explored", tmp_path / "figures")
    assert stems == ["T1"]


def test_named_latencies_stand_beside_no_measurement(explored: Path, tmp_path: Path) -> None:
    """What was run is beside a prediction for the machine that it was run on, or where a user asks for it."""
    file, run = tmp_path / "planned.json", read_run(explored.parent / "run")
    calibration = calibrate(run)
    calibration.save(file)
    speeds = explore_study(run.folder, tmp_path / "explored", STUDY, latency=file, is_sensitive=False).speeds
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "FIGURES", {"scenario": lambda axes, scenario: seen.append(scenario.measured == speeds)})
        patch.setattr(figures, "latency_of", lambda run, source: FittedLatency(calibration))
        patch.setattr(figures, "measured_speeds", lambda requests, rounds: speeds)
        made_up = pd.DataFrame({"request_id": [0], "start_s": [0.0], "end_s": [1.0]})
        patch.setattr(Run, "rounds", made_up)  # the requests were never run
        draw_figures(tmp_path / "explored", tmp_path / "none")
        draw_figures(tmp_path / "explored", tmp_path / "asked", measured_dir=run.folder)
        draw_figures(explored, tmp_path / "own")
    assert seen == [False, True, True]


def test_ticks_of_a_fine_map_can_be_read() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    ratios = np.geomspace(1, 40, 40).tolist()
    axes = plots.break_even_map(figure.subplots(), winners(closed_form_map([0.3, 0.6, 0.9], ratios)))
    shown = " ".join(text.get_text() for text in axes.get_xticklabels())
    assert shown == "1 1.5 2 3 5 7 10 15 20 30 40"

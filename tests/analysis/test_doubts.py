"""Numbers of a disturbed run carry their doubt wherever they are printed or drawn, and nothing is called the best there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import demo
from analysis.explore.exploration import explore_study
from analysis.explore.simulation import simulate_run
from analysis.figures import figures
from analysis.figures.figures import Scenario, draw_figures
from analysis.study.study import Family, Study
from analysis.verdict import of_validation
from sim.decoding.policies.overlapped.pearl import Pearl
from tests.analysis.check.test_reports import CHECK, REPORT
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import calibrate
from traces.folder.run import read_run

NO_CLAIM = "support no claim"
STUDY = Study(policies=["autoregressive", Family(method="fixed_length", settings={"draft_length": [1, 3]}), "saguaro"])


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("clean") / "run", num_requests=6)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("disturbed") / "run", num_requests=6, num_unclean=6)


def _told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert call(*arguments) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("which", ["clean", "disturbed"])
def test_every_command_on_a_run_says_what_its_times_are_worth(
    which: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(which)
    policies = ["--policy", "pearl", "--policy", "autoregressive"]
    told = {
        "calibrate": _told(capsys, "calibrate", "--run", str(run), "--output", str(tmp_path / "c.json")),
        "explore": _told(capsys, "explore", "--run", str(run), "--output-dir", str(tmp_path / "e"), *policies),
        "simulate": _told(capsys, "simulate", "--run", str(run), "--output-dir", str(tmp_path / "s"), *policies),
    }
    again = ["--calibration", str(tmp_path / "c.json")]  # the doubt travels with the file
    told["from file"] = _told(
        capsys, "explore", "--run", str(run), "--output-dir", str(tmp_path / "f"), *policies, *again
    )
    for name, text in told.items():
        assert (NO_CLAIM in text) == (which == "disturbed"), name
    for name in ("explore", "from file"):
        assert ("Best of" in told[name]) == ("best with probability" in told[name]) == (which == "clean")
        assert ("It is the fastest" in told[name]) == (which == "clean")  # of a method that is not named
    for folder, kind in (("e", "exploration"), ("s/00-pearl", "")):
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert (NO_CLAIM in (summary[kind] if kind else summary)["doubt"]) == (which == "disturbed")


def test_some_disturbed_requests_are_left_out_and_leave_no_doubt(tmp_path: Path) -> None:
    calibration = calibrate(read_run(write_run(tmp_path / "run", num_requests=6, num_unclean=2)))
    assert (calibration.num_requests, calibration.num_unclean, calibration.doubt) == (4, 2, "")


def test_simulated_times_are_not_taken_for_measured_ones(clean: Path, tmp_path: Path) -> None:
    simulate_run(clean, tmp_path / "simulated", [Pearl(3)])
    (folder,) = (tmp_path / "simulated").iterdir()
    with pytest.warns(UserWarning, match="simulated times"):
        assert "simulated times" in calibrate(read_run(folder)).doubt
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"kind": "sweep"}))
    assert calibrate(read_run(folder)).doubt == ""


@pytest.fixture
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """Figures by name, of the run that the test names, and the scenario."""
    run: Path = request.getfixturevalue(request.param)
    explore_study(run, tmp_path / "explored", STUDY, is_sensitive=False)
    # Another calibration comes beside the run afterwards: figures go on with the one that was explored with.
    slower = calibrate(read_run(run))
    verify = slower.fits["verify"]
    other = replace(verify, coefficients=tuple(10 * value for value in verify.coefficients))
    replace(slower, fits={**slower.fits, "verify": other}).save(tmp_path / "other.json")
    caught: dict[str, object] = {}
    for name, draw in figures.FIGURES.items():

        def keep(axes: object, scenario: Scenario, name: str = name, draw: object = draw) -> object:
            caught[name], caught["scenario"] = axes.figure, scenario  # type: ignore[attr-defined]
            return draw(axes, scenario)  # type: ignore[operator]

        monkeypatch.setitem(figures.FIGURES, name, keep)
    beside = run / "calibration.json"
    (tmp_path / "other.json").rename(beside)
    try:
        draw_figures(tmp_path / "explored", tmp_path / "figures")
    finally:
        beside.unlink()
    return caught


def _title(drawn: dict[str, object], name: str) -> str:
    figure = drawn[name]
    assert isinstance(figure, Figure)
    return " ".join(figure.axes[0].get_title().split())


@pytest.mark.parametrize("drawn", ["clean", "disturbed"], indirect=True)
def test_figures_carry_the_doubt_of_their_times(drawn: dict[str, object], request: pytest.FixtureRequest) -> None:
    is_disturbed = request.node.callspec.params["drawn"] == "disturbed"
    for name in ("speedup_by_draft_length", "break_even", "break_even_simulated", "pareto"):
        assert (NO_CLAIM in _title(drawn, name)) == is_disturbed, name
    assert NO_CLAIM not in _title(drawn, "acceptance_by_position")  # no time is in it


@pytest.mark.parametrize("drawn", ["clean"], indirect=True)
def test_maps_and_explorations_agree_about_this_pair(drawn: dict[str, object]) -> None:
    """The star has the colour and the numbers of the exploration, and stands where its own latencies put it."""
    scenario = drawn["scenario"]
    assert isinstance(scenario, Scenario)
    assert scenario.cost_ratio == pytest.approx(5, rel=0.1)  # not 50, as of the file beside the run
    best = scenario.table.loc[scenario.table.speedup.idxmax()]
    for name in ("break_even", "break_even_simulated"):
        figure = drawn[name]
        assert isinstance(figure, Figure)
        star = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "*")
        assert star.get_color() == figures.plots.colour_of(best.method)
        (note,) = (text.get_text() for text in figure.axes[0].texts if "\n" in text.get_text())
        assert note.splitlines()[0].endswith(f" {best.speedup:.2f}")
        assert len(note.splitlines()) == 3


def test_the_demo_draws_what_its_table_says_and_names_no_winner_in_doubt(tmp_path: Path) -> None:
    checks = [
        replace(
            CHECK, policy=f"pearl:draft_length={length}", predicted_speedup=speedup, speedup_over_autoregressive=1.0
        )
        for length, speedup in ((2, 0.9), (11, 0.55))
    ]
    sure = replace(REPORT, policies=checks, note="", is_claim=True, widest_interval=0.04)
    assert "within 4.0% (3.0% was asked" in demo.how_exact(sure, 0.03)
    assert "within 4.0% (as asked)" in demo.how_exact(sure, 0.05)
    (named,) = of_validation(sure)
    assert "The fastest was pearl 2" in named.answer
    (refused,) = of_validation(
        replace(sure, note="busy", is_claim=False), would_change={CHECK.temperature: "pearl costs"}
    )
    assert "busy" in refused.answer
    assert "pearl" not in " ".join(refused.lines())
    lines: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.demo.save_figure", lambda figure, path: lines.extend(_lines(figure)))
        demo._draw(tmp_path / "figure.png", sure, [CHECK.temperature])
    assert [0.9, 0.55] in lines


def _lines(figure: Figure) -> list[list[float]]:
    return [np.asarray(line.get_ydata(), float).tolist() for line in figure.axes[0].get_lines()]

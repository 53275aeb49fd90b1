"""The report's script at work in a browser: its sliders answer from the grid, its timeline zooms, and it loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from analysis.report.build import make_report
from tests.analysis.report.browser import PROGRAM, Page, browser_page
from tests.analysis.report.made_up_pair import write_pair
from tests.analysis.report.page_reader import read_page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")]

PANEL = "document.querySelector(\"[data-panel='what-if']\")"
TIMELINE = "document.querySelector(\"[data-chart='timeline']\")"
SOON = "const soon = async (ready) => { while (!ready()) await new Promise((done) => setTimeout(done, 20)); };"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_report([write_pair(folder / "pair", num_requests=4)], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(report)
        shown = f"{PANEL}.scrollIntoView(); await soon(() => {PANEL}.querySelector('.js-plotly-plot'));"
        opened.evaluate(f"(async () => {{ {SOON} {shown} }})()")
        yield opened


@pytest.fixture(scope="module")
def grid(report: Path) -> Any:
    """What the page was given."""
    return read_page(report).payloads["what-if-grid"]


def _moved(page: Page, places: Mapping[str, int]) -> dict[str, str]:
    """What the panel says once its sliders stand at these places, in the order of the axes."""
    script = f"""(async () => {{
        const panel = {PANEL}, sliders = [...panel.querySelectorAll("input[type=range]")];
        {json.dumps(list(places.values()))}.forEach((place, index) => {{
            sliders[index].value = place;
            sliders[index].dispatchEvent(new Event("input"));
        }});
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        const text = (name) => panel.querySelector(name).textContent;
        const window = sliders[3].parentNode.querySelector("output").textContent;
        return {{ answer: text(".answer"), detail: text(".answer + .note"), window }};
    }})()"""
    told: dict[str, str] = page.evaluate(script)
    return told


def _expected(grid: Any, places: Mapping[str, int]) -> dict[str, tuple[float, int]]:
    """Method -> speed-up and draft length, from the grid; between its points straight, in the logarithm of the ratio."""
    *others, window = grid["axes"]
    scales = [np.log if axis["is_log"] else np.asarray for axis in others]
    spots = []
    for axis, scale in zip(others, scales, strict=True):
        low, high = scale(axis["points"][0]), scale(axis["points"][-1])
        spots.append(low + (high - low) * places[axis["name"]] / 100)
    lengths = window["points"][: places["window"] + 1]
    found = {}
    for method, speedups in zip(grid["methods"], grid["speedups"], strict=True):
        table = np.reshape(speedups, [len(axis["points"]) for axis in grid["axes"]])
        points = [scale(axis["points"]) for axis, scale in zip(others, scales, strict=True)]
        between = RegularGridInterpolator(points, table, bounds_error=False, fill_value=None)  # ends may be rounded
        row = between(spots)[0][: len(lengths)]
        found[method["name"]] = (float(row.max()), lengths[int(row.argmax())])
    return found


@pytest.mark.parametrize(
    "places",
    [
        (0, 0, 0, 0),
        (100, 100, 0, 6),
        (100, 100, 100, 6),
        (40, 100, 0, 3),
        (73, 61, 27, 4),
        (88, 15, 55, 2),
        (10, 5, 90, 5),
    ],
    ids=str,
)
def test_the_panel_answers_what_the_grid_says(page: Page, grid: Any, places: tuple[int, ...]) -> None:
    at = dict(zip((axis["name"] for axis in grid["axes"]), places, strict=True))
    told, expected = _moved(page, at), _expected(grid, at)
    shown = {name: float(value) for name, value in (part.rsplit(" ", 1) for part in told["detail"].split(" · "))}
    assert shown == {name: pytest.approx(speedup, abs=0.0051) for name, (speedup, _) in expected.items()}
    assert told["window"].startswith(f"{grid['axes'][3]['points'][at['window']]} ")
    name, (speedup, length) = max(expected.items(), key=lambda item: item[1][0])
    if speedup <= 1 + grid["margin"]:
        assert told["answer"] == "Plain decoding: no method gains here."
        return
    said = re.fullmatch(r"(.+) wins: ([\d.]+) times plain decoding, drafting (\d+) tokens? a round\.", told["answer"])
    assert said is not None, told["answer"]
    assert said[1] == name
    assert float(said[2]) == pytest.approx(speedup, abs=0.0051)
    assert int(said[3]) == length


def test_plain_decoding_and_other_methods_win_somewhere(grid: Any) -> None:
    """So that the answers above are of more than one kind."""
    names = [axis["name"] for axis in grid["axes"]]
    worst, best = (
        _expected(grid, dict(zip(names, places, strict=True))) for places in ((0, 0, 100, 6), (100, 100, 0, 6))
    )
    assert max(speedup for speedup, _ in worst.values()) < max(speedup for speedup, _ in best.values())
    assert max(speedup for speedup, _ in best.values()) > 1 + grid["margin"]


def test_the_timeline_changes_its_policy_and_zooms(page: Page, report: Path) -> None:
    views = read_page(report).payloads["timeline"]["views"]
    script = f"""(async () => {{
        {SOON}
        const chart = {TIMELINE}, picker = document.querySelector("select[data-for='timeline']");
        chart.scrollIntoView();
        await soon(() => chart.data && chart._fullLayout);
        const spans = [], note = () => spans.push([...chart._fullLayout.xaxis.range]);
        const first = chart.data.map((trace) => trace.name);
        picker.selectedIndex = {len(views) - 1};
        picker.dispatchEvent(new Event("change"));
        note();
        const button = [...chart.querySelectorAll(".modebar-btn")].find((each) => /zoom in/i.test(each.dataset.title));
        button.dispatchEvent(new MouseEvent("click", {{ bubbles: true }}));
        await soon(() => chart._fullLayout.xaxis.range[1] !== spans[0][1]);
        note();
        return {{ spans, first, last: chart.data.map((trace) => trace.name), num: chart.data[0].x.length }};
    }})()"""
    told = page.evaluate(script)
    shown = [[trace.get("name") for trace in figure["data"]] for _, figure in (views[0], views[-1])]
    assert [told["first"], told["last"]] == shown
    assert told["num"] == len(views[-1][1]["data"][0]["x"])
    (low, high), (closer_low, closer_high) = told["spans"]
    assert low < closer_low < closer_high < high


def test_the_page_asks_for_nothing_and_logs_no_error(page: Page, report: Path) -> None:
    page.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert [address for address in page.requests if not address.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert page.problems == []
    page.evaluate(
        "fetch('http://127.0.0.1:9/').catch(() => 0)"
    )  # what a request would look like: refused by its policy
    assert page.problems

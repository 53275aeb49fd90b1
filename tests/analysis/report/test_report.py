"""The report of made-up runs, read as a browser would: it loads nothing, escapes everything, says what commands say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

from analysis.check.reports import write_report
from analysis.report.build import make_report
from analysis.report.elements import with_interval
from analysis.report.material import read_arms
from analysis.tuning.ablation import ABLATION, Ablated
from analysis.tuning.what_if import WHAT_IF, Costs, Simulated, WhatIf
from tests.analysis.report.made_up_pair import LATENCY, write_pair
from tests.analysis.report.page_reader import PageReader, read_page
from traces.folder.run import RunError, read_run
from traces.metrics.machine_speed import machine_speed_of
from traces.metrics.speeds import measured_speeds

MAX_BYTES = 6_000_000
HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(2)>&amp;"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("runs") / "pair", prompt=HOSTILE, target=HOSTILE, temperatures=(0.0, 1.0))


@pytest.fixture(scope="module")
def page(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PageReader:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    make_report([run_folder], path)
    assert path.stat().st_size < MAX_BYTES
    return read_page(path)


def test_the_page_loads_nothing(page: PageReader) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "data", "poster"), (tag, name, value)
            assert name != "href" or str(value).startswith("#"), value
    assert not re.search(r"url\(|@import", "".join(page.styles))
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in str(policies[0])
    assert "http" not in str(policies[0])


def test_what_comes_from_a_run_is_text_and_never_markup(page: PageReader) -> None:
    assert HOSTILE in page.text  # the target's name, as it is
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 3  # data, library, ours
    assert "img" not in names
    assert all("onerror" not in attributes for _, attributes in page.tags)


def test_the_sections_are_there_and_the_links_lead_to_them(page: PageReader) -> None:
    names = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert names[0] == "verdict"
    assert {"methods", "timeline", "acceptance", "time", "sensitivity", "what-if", "ran", "limits"} <= set(names)
    links = {str(attributes["href"]) for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{name}" for name in names[1:]}


def test_the_table_holds_the_numbers_that_the_command_prints(page: PageReader, run_folder: Path) -> None:
    run = read_run(run_folder)
    adjusted = machine_speed_of(run.requests, run.rounds).adjusted(run.rounds)
    for speed in measured_speeds(run.requests, adjusted):
        told = [row for row in page.rows if with_interval(speed.tokens_per_s, speed.interval, 1) in row]
        assert any(with_interval(speed.speedup, speed.speedup_interval) in row for row in told), speed


def test_every_chart_is_one_that_plotly_knows(page: PageReader) -> None:
    charts = [payload for payload in page.payloads.values() if "views" in payload]
    figures = [figure for payload in charts for _, figure in payload["views"]]
    figures += [payload["figure"] for payload in charts if not payload["views"]]
    assert len(figures) >= 8
    for figure in figures:
        go.Figure(figure)  # type: ignore[no-untyped-call]  # raises for an unknown property or a wrong value
        assert figure["data"]


def test_the_timeline_is_bounded_and_tells_rollbacks(page: PageReader) -> None:
    views = dict(page.payloads["timeline"]["views"])
    assert any("pearl" in name for name in views)
    names = {trace.get("name") for figure in views.values() for trace in figure["data"]}
    assert {"verify", "draft, accepted", "draft, rolled back", "branches, hit", "branches, missed", "waiting"} <= names
    assert all(len(trace["y"]) < 2000 for figure in views.values() for trace in figure["data"])


def test_the_what_if_grid_has_a_number_for_every_cell(page: PageReader) -> None:
    data = page.payloads["what-if-grid"]
    size = 1
    for axis in data["axes"]:
        size *= len(axis["points"])
    assert all(len(values) == size and min(values) > 0 for values in data["speedups"])
    assert len(data["methods"]) == len(data["speedups"]) == 4


def test_a_disturbed_and_incomplete_run_says_so_at_the_top(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "cut", num_unclean=5, is_cut_short=True)
    make_report([folder], tmp_path / "report.html")
    page = read_page(tmp_path / "report.html")
    assert "was cut short" in page.header
    assert "5 of 30 requests ran beside other load" in page.header
    assert "No method is shown to beat plain decoding here" in page.text


@pytest.mark.long
def test_a_comparison_tells_what_other_costs_would_bring(tmp_path: Path) -> None:
    """Its tables stand beside the runs' folders."""
    folder = tmp_path / "compared"
    write_pair(folder / "recorded")
    write_pair(folder / "compared")
    cost = Costs(
        temperature=0.0,
        name="measured",
        cost_ratio=5.25,
        widening=None,
        speedups={"autoregressive": 1.0, "pearl": 1.317, "fixed_length": 1.204},
        policies={},
    )
    flat = replace(cost, name="flat", widening=0.0, speedups={"autoregressive": 1.0, "pearl": 1.9, "fixed_length": 1.7})
    dsi = Simulated(
        temperature=0.0,
        family="dsi",
        settings="lookahead=2",
        num_servers=3,
        tokens_per_s=9.0,
        speedup=1.551,
        tokens_per_target_forward=1.2,
        draft_forwards_per_token=2.0,
    )
    stops: dict[str, float | None] = {"pearl": None, "fixed_length": 0.43}
    write_report(folder, WHAT_IF, WhatIf(costs=[cost, flat], simulated=[dsi], stops_paying={"0": stops}))
    changed = Ablated(
        temperature=0.0,
        change="no branches",
        policy="specbranch",
        speedup=1.271,
        tokens_per_target_forward=2.0,
        rollback=0.618,
        draft_forwards_per_token=1.0,
    )
    write_report(folder, ABLATION, [changed])
    make_report([folder], tmp_path / "report.html")
    page = read_page(tmp_path / "report.html")
    assert ["method", "as measured", "flat", "pays up to"] in page.rows
    assert ["pearl", "1.32", "1.90", "> 1"] in page.rows
    assert ["fixed_length", "1.20", "1.70", "0.43"] in page.rows
    assert ["dsi (simulated, 3 targets)", "1.55", "-", "-"] in page.rows
    assert ["no branches", "1.27", "62%"] in page.rows


def test_two_runs_are_compared(tmp_path: Path) -> None:
    first = write_pair(tmp_path / "old")
    second = write_pair(tmp_path / "new", latency=replace(LATENCY, verify_s=LATENCY.verify_s / 2, host_s=0.00025))
    make_report([first, second], tmp_path / "report.html")
    page = read_page(tmp_path / "report.html")
    header = next(index for index, row in enumerate(page.rows) if "ratio [95%]" in row)
    plain = page.rows[header + 1]
    assert plain[0] == "autoregressive"
    assert 1.9 < float(plain[page.rows[header].index("ratio [95%]")].split()[0]) < 2.1
    assert "old against new" in page.text


def test_two_recordings_are_two_arms(tmp_path: Path) -> None:
    arms = read_arms([write_pair(tmp_path / "a"), write_pair(tmp_path / "b")])
    assert [arm.name for arm in arms] == ["a", "b"]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        make_report([tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        make_report([tmp_path / "empty"], tmp_path / "report.html")
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        make_report([tmp_path / "empty"], tmp_path / "there.html")
    with pytest.raises(RunError, match=r"\.html"):
        make_report([tmp_path / "empty"], tmp_path / "report.pdf")
    assert (tmp_path / "there.html").read_text() == "mine"

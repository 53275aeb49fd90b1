"""The published operating points: what they imply, and what the simulation must say about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.papers.maps import simulated_map, winners, with_reductions
from analysis.papers.operating_points import SSD_DRAFT_LENGTH, SSD_HIT_RATE, published_points
from analysis.papers.published import METHODS, Clairvoyant, Effort, as_record, map_of_methods, simulate_published
from analysis.papers.report import print_published, published_page, write_published
from analysis.study.candidates import textbook_policies
from sim.decoding.closed_forms import outcome_cache_speedup, pearl_speedup, sps_speedup
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.reductions import as_outcome_hedging

SMALL = Effort(num_requests=4, num_tokens=120)


def test_implied_acceptance_is_that_of_the_published_speedups() -> None:
    points = published_points()
    assert len(points) == 14
    first = [round(point.alpha, 3) for point in points[:12]]
    # LLaMA 68M & 7B, Vicuna 68M & 13B, Deepseek 1.3B & 33B, LLaMA-3.1 8B & 70B on HumanEval, GSM8K and CNN/DM
    assert first == [0.648, 0.693, 0.639, 0.722, 0.620, 0.642, 0.921, 0.866, 0.849, 0.944, 0.918, 0.892]
    for point in points[:12]:
        found = pearl_speedup(point.alpha, point.cost_ratio, point.cost_ratio)
        assert float(found) == pytest.approx(point.reported["pearl"])
    for point in points[12:]:
        gamma, ratio = SSD_DRAFT_LENGTH, point.cost_ratio
        assert float(sps_speedup(point.alpha, gamma, ratio)) == pytest.approx(point.reported["fixed_length"])
        cached = outcome_cache_speedup(point.alpha, gamma, SSD_HIT_RATE, ratio)
        assert float(cached) == pytest.approx(point.reported["saguaro"])


def test_a_clairvoyant_trace_has_the_outcomes_of_the_geometric_one_and_tells_them() -> None:
    from sim.decoding.acceptance_models import Geometric

    told = Clairvoyant(0.7).sample(200, 0, np.random.default_rng(1))
    assert told.ranks == Geometric(alpha=0.7).sample(200, 0, np.random.default_rng(1)).ranks
    assert [signal.max_prob > 0.5 for signal in told.signals] == [rank == 0 for rank in told.ranks]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    (found,) = map_of_methods([0.5, 0.9], [2.0, 8.0], Effort(num_requests=6, num_tokens=150))
    return found


def test_the_map_holds_every_method_and_nothing_it_contains_beats_outcome_hedging(table: pd.DataFrame) -> None:
    speeds = table.pivot_table(index=["alpha", "cost_ratio"], columns="method", values="speedup")
    assert set(speeds.columns) == set(METHODS)
    assert speeds.shape == (4, len(METHODS))
    for method in ("fixed_length", "pearl", "specbranch", "saguaro"):
        assert (speeds.outcome_hedging >= speeds[method]).all()
    assert (speeds.dsi >= 1 - 1e-9).all()
    assert (speeds.loc[(0.9, 8.0)] > speeds.loc[(0.5, 8.0)] - 1e-9).all()


def test_a_reduction_stands_in_where_it_is_faster() -> None:
    rows = [
        (0.5, 2.0, "outcome_hedging", "outcome_hedging", 1.1),
        (0.5, 2.0, "pearl", "pearl:draft_length=2", 1.3),
        (0.5, 2.0, "adaedl", "adaedl", 9.0),
        (0.5, 4.0, "outcome_hedging", "outcome_hedging", 1.4),
        (0.5, 4.0, "pearl", "pearl:draft_length=2", 1.3),
        (0.5, 8.0, "outcome_hedging", "outcome_hedging", 1.4),
        (0.5, 8.0, "pearl", "pearl:draft_length=2", 1.3),
        (0.5, 8.0, "specbranch", "specbranch", 1.5),
    ]
    found = with_reductions(pd.DataFrame(rows, columns=["alpha", "cost_ratio", "method", "setting", "speedup"]))
    ours = found[found.method == "outcome_hedging"]
    assert ours.speedup.tolist() == [1.3, 1.4, 1.5]
    assert "hedges=frontier" in ours.setting.iloc[0]
    assert ours.setting.iloc[1] == "outcome_hedging"
    assert parse_policy(ours.setting.iloc[2]) == as_outcome_hedging(parse_policy("specbranch"))


def test_costly_branches_slow_down_what_has_branches_and_nothing_else() -> None:
    policies = [*textbook_policies(0.7, [4.0])]
    free, dear = (
        simulated_map(policies, [0.7], [4.0], branch_cost=cost, num_requests=4, num_tokens=100).set_index("method")
        for cost in (0.0, 0.5)
    )
    for method in ("autoregressive", "fixed_length", "pearl"):
        assert dear.speedup[method] == pytest.approx(free.speedup[method])
    for method in ("specbranch", "saguaro", "outcome_hedging"):
        assert dear.speedup[method] < free.speedup[method]


def test_the_textbook_grid_names_pearl_at_the_speed_ratio() -> None:
    labels = {label_of(policy) for policy in textbook_policies(0.6, [3.0, 7.6])}
    assert {label_of(Pearl(3)), label_of(Pearl(8))} <= labels


def test_simulation_stands_beside_the_published_numbers_and_says_why_they_differ() -> None:
    rows = simulate_published(SMALL)
    for row in rows:
        for method in row.point.implied_by:
            assert row.simulated[method] == pytest.approx(row.point.reported[method], rel=0.2)
        if "specbranch" in row.point.reported:
            assert row.specbranch_clairvoyant > row.simulated["specbranch"] > row.simulated["pearl"]
            assert "PEARL agrees because" in row.explained
        assert as_record(row)["published"] == dict(row.point.reported)
    page = published_page(rows, {})
    for row in rows:
        assert f"{row.point.pair}, {row.point.dataset}: " in page
    console = Console(width=160, record=True)
    print_published(console, rows)
    assert "(2.04)" in console.export_text()


@pytest.mark.long
def test_the_command_writes_a_page_a_figure_and_a_summary(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    write_published(folder, Effort(num_requests=2, num_tokens=40), alphas=[0.5, 0.8], cost_ratios=[2.0, 8.0])
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["published"]) == 14
    assert len(summary["informed"]["ratios"]) == 12
    assert all(len(rows) == 4 * len(METHODS) for rows in summary["where_each_wins"].values())
    page = (folder / "published.md").read_text()
    assert page.count("## Where each method wins") == 2
    assert "## SpecBranch with informed signals" in page
    assert "| alpha | c = 2 | c = 8 |" in page
    assert (folder / "where_each_wins.png").stat().st_size > 10_000
    won = winners(pd.DataFrame(next(iter(summary["where_each_wins"].values()))))
    assert len(won) == 4

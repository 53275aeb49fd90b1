"""SpecBranch's published tables under informed signals: the stored parameters hold what they were not fitted to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from analysis.papers.informed import ABLATION, EPSILONS, FITTED, InformedTables, informed_tables
from analysis.papers.informed_report import informed_record, print_informed
from analysis.papers.published import Effort

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tables() -> InformedTables:
    return informed_tables(Effort())


def test_the_cells_held_back_are_within_five_per_cent(tables: InformedTables) -> None:
    assert sum(ratio.is_fitted for ratio in tables.ratios) == 4
    assert len(tables.ratios) == 12
    assert tables.mean_error(is_fitted=False) <= 0.05


def test_both_numbers_of_the_ablation_are_within_five_per_cent(tables: InformedTables) -> None:
    assert set(tables.ablation.errors) == set(ABLATION)
    for name, error in tables.ablation.errors.items():
        assert abs(error) <= 0.05, f"{name} is {error:+.1%} off"


def test_h_rad_holds_the_speed_that_confidence_loses_with_epsilon(tables: InformedTables) -> None:
    epsilon, kept = tables.ablation.end
    assert EPSILONS[0] < epsilon <= EPSILONS[-1]
    assert kept > 49 / 64 + 0.05


def test_more_nats_bring_more_speed(tables: InformedTables) -> None:
    told = tables.ablation.by_nats
    assert told[-1] > told[0]
    assert 0 < tables.ablation.nats < 1.1


def test_rollback_is_told_in_every_definition(tables: InformedTables) -> None:
    for rates in tables.rollback.values():
        assert len(rates) == 4
        assert all(0 < rate < 1 for rate in rates.values())
    pearl = tables.rollback["pearl"]
    assert pearl["drafted and never emitted"] > pearl["rejected of submitted"]


def test_a_predictor_that_knows_nothing_explains_less() -> None:
    """The test can fail: without H-RAD's knowledge the held-back cells are not explained."""
    effort = Effort(num_requests=6, num_tokens=150)
    blind = informed_tables(effort, replace(FITTED, known=0.01, confidence_sd=0.3))
    assert blind.mean_error(is_fitted=False) > 0.05


def test_the_tables_are_whole_at_eighty_columns(tables: InformedTables) -> None:
    console = Console(width=80, record=True)
    print_informed(console, tables)
    text = console.export_text()
    assert "LLaMA-3.1 8B & 70B" in text
    assert "held back" in text
    assert "Out of reach" in text
    assert "…" not in text
    json.dumps(informed_record(tables))

"""The check against a measured server: on a server of known costs, and on a real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.explore.work.scale_out import Workers
from analysis.plan.measured.check import CheckResult, check_server_table
from analysis.plan.measured.errors import Cell, chosen_length, errors_of, has_wrong_sign, regrets
from tests.analysis.plan.measured.made_up_server import DRAFT, TARGET, write_table
from traces.fits.step_costs import read_step_costs

SERVING = Path(__file__).parents[4] / ".." / "shared" / "data" / "serving"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("made_up") / "table.csv", (0, 1, 3, 5), (1, 4, 16, 64))


@pytest.fixture(scope="module")
def checked(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckResult, Path]:
    folder = tmp_path_factory.mktemp("checked") / "out"
    return check_server_table(table, folder), folder


def test_a_server_of_known_costs_is_predicted(checked: tuple[CheckResult, Path]) -> None:
    errors = checked[0].errors
    assert errors.num_fitted == 4 + 2 * 2, "none at every load; K 1 and 5 at the loads 1 and 16 that the table has"
    assert errors.num_predicted == 8
    assert errors.mean_abs_throughput_error < 0.05, errors
    assert errors.worst_abs_tpot_error < 0.12, errors
    assert errors.worst_k_regret < 0.05, errors
    assert errors.num_wrong_signs == 0


def test_the_known_costs_are_found(checked: tuple[CheckResult, Path]) -> None:
    steps = checked[0].server.steps
    assert steps.target.floor_s == pytest.approx(TARGET.floor_s, rel=0.05)
    assert steps.target.token_s == pytest.approx(TARGET.token_s, rel=0.4)
    assert steps.drafts["Small"].floor_s == pytest.approx(DRAFT.floor_s, rel=0.4)


def test_the_files_hold_a_row_a_cell_and_the_summary(checked: tuple[CheckResult, Path]) -> None:
    result, folder = checked
    cells = pd.read_parquet(folder / "cells.parquet")
    assert len(cells) == 16
    assert cells.throughput_error.tolist() == [cell.throughput_error for cell in result.cells]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["check"] == {**vars(result.errors)}
    promised = {
        "mean_abs_throughput_error",
        "worst_abs_throughput_error",
        "mean_abs_tpot_error",
        "worst_abs_tpot_error",
    }
    promised |= {"median_abs_ttft_error", "worst_k_regret", "num_wrong_signs"}
    assert promised <= summary["check"].keys()


def test_a_plan_can_be_made_with_the_fitted_costs(checked: tuple[CheckResult, Path]) -> None:
    result, folder = checked
    assert read_step_costs(folder / "costs-Small.json") == result.server.steps.step_costs("Small")


def test_any_number_of_workers_gives_the_same_digits(
    table: Path, checked: tuple[CheckResult, Path], tmp_path: Path
) -> None:
    again = check_server_table(table, tmp_path / "out", workers=Workers(count=2))
    assert again.cells == checked[0].cells


def test_results_are_not_overwritten(table: Path, checked: tuple[CheckResult, Path]) -> None:
    with pytest.raises(ValueError, match="never overwritten"):
        check_server_table(table, checked[1])


def test_other_lengths_and_loads_are_fitted_at_their_ends(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv", (0, 2, 4), (2, 8))
    result = check_server_table(table, tmp_path / "out")
    fitted = {(cell.draft_length, cell.max_concurrency) for cell in result.cells if cell.is_fitted}
    assert fitted == {(0, 2), (0, 8), (2, 2), (2, 8), (4, 2), (4, 8)}
    assert result.errors.num_predicted == 0
    assert result.errors.mean_abs_throughput_error < 0.05


def test_a_table_without_plain_decoding_is_fitted_too(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv", (1, 3, 5), (1, 16))
    errors = check_server_table(table, tmp_path / "out").errors
    assert errors.num_wrong_signs == 0
    assert errors.mean_abs_throughput_error < 0.05


def cell(draft_length: int, measured: float, predicted: float, max_concurrency: int = 8) -> Cell:
    return Cell(
        dataset="",
        method="",
        draft="Small" if draft_length else "",
        draft_length=draft_length,
        max_concurrency=max_concurrency,
        kv_tokens=None,
        is_fitted=False,
        measured_output_tok_s=measured,
        measured_mean_tpot_ms=10.0,
        measured_median_ttft_ms=400.0,
        predicted_output_tok_s=predicted,
        predicted_mean_tpot_ms=11.0,
        predicted_median_ttft_ms=300.0,
    )


def test_regret_is_what_the_predicted_choice_loses() -> None:
    cells = [cell(0, 100, 100), cell(1, 120, 140), cell(3, 150, 130)]
    assert regrets(cells) == {("", "Small", 8): pytest.approx(0.2)}


def test_decoding_without_speculation_is_a_choice() -> None:
    assert regrets([cell(0, 100, 120), cell(1, 80, 110)]) == {("", "Small", 8): 0.0}


def test_ties_go_to_the_shorter_draft() -> None:
    assert chosen_length({2: 100.0, 4: 100.9}) == 2
    assert chosen_length({2: 100.0, 4: 103.0}) == 4


def test_a_sign_is_wrong_only_where_the_measured_difference_is_sure() -> None:
    plain = cell(0, 100, 100)
    wrong, unsure, right = cell(1, 90, 110), cell(2, 97, 110), cell(3, 90, 99)
    assert [has_wrong_sign(each, [plain]) for each in (wrong, unsure, right)] == [True, False, False]
    assert not has_wrong_sign(wrong, [replace(plain, max_concurrency=9)])


def test_errors_are_those_of_the_predicted_cells() -> None:
    errors = errors_of([cell(0, 100, 110), replace(cell(1, 100, 150), is_fitted=True)])
    assert errors.mean_abs_throughput_error == pytest.approx(0.1)
    assert errors.median_abs_ttft_error == pytest.approx(0.25)
    assert (errors.num_fitted, errors.num_predicted) == (1, 1)
    quick = replace(cell(0, 100, 110), measured_median_ttft_ms=200.0)
    assert errors_of([quick]).median_abs_ttft_error is None


@pytest.mark.slow
def test_a_measured_server_with_speculation_is_predicted(tmp_path: Path) -> None:
    """Truth 1 of issue 12: Qwen3-32B on one H100 with three drafts; K in 2, 3, 4, 6 and most loads were never fitted."""
    path = SERVING / "vllm_qwen3_32b_h100_94gb_instructcoder.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    result = check_server_table(path, tmp_path / "out", workers=Workers(count=2))
    errors = result.errors
    assert errors.num_fitted == 9 + 3 * 2 * 3
    for draft in {cell.draft for cell in result.cells if cell.draft}:
        own = errors_of([cell for cell in result.cells if cell.draft == draft])
        assert own.mean_abs_throughput_error <= 0.05, (draft, own)
        assert own.mean_abs_tpot_error <= 0.06, (draft, own)
    assert errors.worst_abs_throughput_error <= 0.12, errors
    assert errors.worst_abs_tpot_error <= 0.15, errors
    assert errors.worst_k_regret <= 0.03, errors
    assert errors.num_wrong_signs == 0
    at_256 = {(c.draft, c.draft_length): c for c in result.cells if c.max_concurrency == 256}
    inverted, plain = at_256["Qwen3-1.7B", 3], at_256["", 0]
    assert inverted.predicted_mean_tpot_ms < plain.predicted_mean_tpot_ms
    assert inverted.predicted_median_ttft_ms > 3 * plain.predicted_median_ttft_ms

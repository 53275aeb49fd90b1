"""Every method on one pair, from Python: a table that holds together."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.check.compare import compare
from analysis.check.comparison import read_comparison
from analysis.check.validation import read_validation
from traces.folder.run import read_run


@pytest.mark.long
def test_comparing_from_python_needs_no_progress_and_leaves_a_table_that_can_be_read(tmp_path: Path) -> None:
    rows = compare(tmp_path / "out", temperatures=(1.0,), num_prompts=2, max_new_tokens=24, is_quick=True)
    assert {"autoregressive", "fixed_length", "pearl", "outcome_hedging", "prompt_lookup"} <= {
        row.family for row in rows
    }
    assert all(row.tokens_identical and row.rounds_identical for row in rows)
    table = read_comparison(tmp_path / "out")
    assert [row.policy for row in table] == [row.policy for row in rows]
    checks = {check.policy: check for check in read_validation(tmp_path / "out" / "compared").policies}
    assert checks["autoregressive"].measured_tokens_per_s == table[0].tokens_per_s
    recorded, measured = (read_run(tmp_path / "out" / name) for name in ("recorded", "compared"))
    assert not set(recorded.requests.prompt_id) & set(measured.requests.prompt_id)

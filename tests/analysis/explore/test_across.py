"""Several scenarios end in one summary, and a law needs no run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.explore.across import summarise_scenarios
from analysis.explore.exploration import explore_study
from analysis.study.flags import StudyFlags
from analysis.study.study import make_study
from analysis.tuning.asked import asked_study
from sim.decoding.policies.catalog import POLICIES
from sim.latency.constant import ConstantLatency
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run

LATENCY = ConstantLatency(draft_s=0.1, verify_s=1.0)


def _table(**speeds: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"scenario": scenario, "policy": policy, "tokens_per_s": both[index], "speedup": both[index] / 10}
            for index, scenario in enumerate(("here", "there"))
            for policy, both in speeds.items()
        ]
    )


def test_one_policy_for_all_is_the_one_that_never_loses_much() -> None:
    across = summarise_scenarios(_table(pearl=(20, 10), saguaro=(10, 20), fixed_length=(18, 16)))
    assert across is not None
    assert across.policy == "fixed_length"
    assert across.worst_loss == pytest.approx(0.2)
    assert across.mean_loss == pytest.approx(0.15)
    assert [(row[0], row[1], row[2]) for row in across.rows] == [("here", "pearl", 2.0), ("there", "saguaro", 2.0)]


def test_there_is_no_summary_of_one_scenario_or_of_policies_that_ran_apart() -> None:
    table = _table(pearl=(20, 10), saguaro=(10, 20))
    assert summarise_scenarios(table[table.scenario == "here"]) is None
    assert summarise_scenarios(table.iloc[[0, 3]]) is None


def test_a_study_of_laws_needs_no_run(tmp_path: Path) -> None:
    conditions = {"alignments": ["geometric:alpha=0.8", "geometric:alpha=0.3"]}
    study, _ = asked_study(StudyFlags(conditions=conditions), None, latency=LATENCY)
    found = explore_study(None, tmp_path / "out", study, latency=LATENCY)
    speeds = {scenario: ranking.best for scenario, ranking in found.rankings.items()}
    assert len(speeds) == 2
    assert set(found.table.policy.str.partition(":")[0]) == set(POLICIES) - {"probe", "prompt_lookup"}
    high = found.table[found.table.scenario.str.contains("0.8")].speedup.max()
    assert high > 2 * found.table[found.table.scenario.str.contains("0.3")].speedup.max() > 2
    chosen, lines = asked_study(StudyFlags(conditions=conditions, policies=["pearl"]), None, latency=LATENCY)
    assert len(lines) == len(chosen.all_policies()) == 1
    with pytest.raises(ValueError, match="no times of operations; name a calibration"):
        explore_study(None, tmp_path / "two", study)
    with pytest.raises(ValueError, match="without a run nothing says which drafts are accepted"):
        explore_study(None, tmp_path / "three", make_study({"policies": ["pearl"]}), latency=LATENCY)


def test_every_method_is_tried_by_default_and_several_scenarios_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", num_requests=4)
    arguments = ["--run", str(run), "--output-dir", str(tmp_path / "out"), "--cost-ratio", "3", "--cost-ratio", "9"]
    assert call("explore", *arguments) == 0
    printed = capsys.readouterr().out
    assert "Across 2 scenarios" in printed
    assert "One policy for all of them: " in printed
    assert "vLLM: mean acceptance" in printed
    methods = set(pd.read_parquet(tmp_path / "out" / "results.parquet").method)
    assert methods == set(POLICIES) - {"probe", "prompt_lookup"}

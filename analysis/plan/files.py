"""A plan as files: a summary, a row a method, the table for three engines, and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.figures.serving_plots import draw_plan
from analysis.plan.dialects.files import ServedTable, write_engines
from analysis.plan.measured.replay import plan_replay, write_replay
from analysis.plan.planning import PlanResult
from analysis.plan.verdict import rows, summary_of


def write_plan(plan: PlanResult, output_dir: Path, *, draft: str, draft_method: str = "draft_model") -> None:
    """Into a new folder that exists: summary.json, methods.parquet, curves.parquet, step_costs.json, figures, and where
    speculation pays the files of `write_engines` and of `write_replay`.

    draft, draft_method: what the engine shall load.
    """
    summary = json.dumps({"plan": summary_of(plan), "methods": rows(plan)}, indent=2)
    (output_dir / "summary.json").write_text(summary + "\n", encoding="utf-8")
    pd.DataFrame(rows(plan)).to_parquet(output_dir / "methods.parquet")
    columns = ["method", "requests_per_s", "goodput_per_s", "is_settled"]
    pd.DataFrame(list(plan.curves), columns=columns).to_parquet(output_dir / "curves.parquet")
    served = ServedTable(
        table=plan.table,
        costs=plan.machine.costs,
        acceptance=plan.acceptance,
        mean_context=plan.mean_context,
        joining=plan.joining,
        max_num_seqs=plan.settings.scheduler.max_num_seqs,
        draft=draft,
        method=draft_method,
    )
    if write_engines(served, output_dir):
        write_replay(plan_replay(served, kv_tokens=plan.machine.kv_tokens_with_draft), output_dir)
    plan.machine.costs.write(output_dir / "step_costs.json")
    draw_plan(plan, output_dir)

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
from traces.files import write_frame, write_text


def write_plan(plan: PlanResult, output_dir: Path, *, draft: str, draft_method: str = "draft_model") -> None:
    """Into a new folder that exists: summary.json, methods.parquet, curves.parquet, step_costs.json, figures, and where
    speculation pays the files of `write_engines` and of `write_replay`.

    draft, draft_method: what the engine shall load.
    """
    write_frame(output_dir / "methods.parquet", pd.DataFrame(rows(plan)))
    columns = ["method", "requests_per_s", "goodput_per_s", "is_settled"]
    write_frame(output_dir / "curves.parquet", pd.DataFrame(list(plan.curves), columns=columns))
    served = ServedTable(
        table=plan.table,
        costs=plan.machine.costs,
        acceptance=plan.acceptance,
        mean_context=plan.mean_context,
        joining=plan.joining,
        max_num_seqs=plan.settings.server.max_num_seqs,
        draft=draft,
        method=draft_method,
    )
    if write_engines(served, output_dir):
        write_replay(plan_replay(served, kv_tokens=plan.machine.kv_tokens_with_draft), output_dir)
    plan.machine.costs.write(output_dir / "step_costs.json")
    draw_plan(plan, output_dir)
    summary = json.dumps({"plan": summary_of(plan), "methods": rows(plan)}, indent=2)
    write_text(output_dir / "summary.json", summary + "\n")  # the last: where it stands, all of it is there

"""A plan as files: a summary, a row a method, the table for an engine, and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.figures.serving_plots import draw_plan
from analysis.plan.planning import PlanResult
from analysis.plan.verdict import lengths_for_vllm, rows, summary_of


def write_plan(plan: PlanResult, output_dir: Path) -> None:
    """Into a new folder that exists: summary.json, methods.parquet, curves.parquet, step_costs.json, figures."""
    summary = json.dumps({"plan": summary_of(plan), "methods": rows(plan)}, indent=2)
    (output_dir / "summary.json").write_text(summary + "\n", encoding="utf-8")
    pd.DataFrame(rows(plan)).to_parquet(output_dir / "methods.parquet")
    columns = ["method", "requests_per_s", "goodput_per_s", "is_settled"]
    pd.DataFrame(list(plan.curves), columns=columns).to_parquet(output_dir / "curves.parquet")
    lengths = lengths_for_vllm(plan.table, plan.settings.scheduler.max_num_seqs)
    config = {"num_speculative_tokens_per_batch_size": lengths}
    (output_dir / "vllm.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    plan.machine.costs.write(output_dir / "step_costs.json")
    draw_plan(plan, output_dir)

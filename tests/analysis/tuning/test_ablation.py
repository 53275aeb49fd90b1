"""SpecBranch's ablation: one change at a time, on the simulator."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from analysis.check.reports import write_report
from analysis.tuning.ablation import ABLATION, AS_CHOSEN, ablate, changes, print_ablation, read_ablation
from analysis.tuning.choosing import AUTO_TRIED, choose_policies
from analysis.tuning.measured import Measured
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.engine import simulate
from sim.latency.constant import ConstantLatency
from traces.folder.run import RunError
from traces.schema import RequestTrace

LATENCY = ConstantLatency(draft_s=0.1, verify_s=0.6, branch_s=0.1)


@pytest.fixture
def traces(make_trace: Callable[..., RequestTrace]) -> list[RequestTrace]:
    return [make_trace(num_tokens=80, acceptance=0.7, seed=seed, with_classes=True) for seed in range(4)]


def test_one_thing_changes_at_a_time(traces: list[RequestTrace]) -> None:
    base = parse_policy("specbranch:draft_length=5,max_branches=4,epsilon=0.4")
    assert isinstance(base, SpecBranch)
    changed = changes(base, Measured.of(traces, LATENCY))
    assert {"no branches", "no H-RAD", "fixed number of branches", "fixed length", "k_max = 8"} <= set(changed)
    for name, policy in changed.items():
        different = {f.name for f in fields(base) if getattr(base, f.name) != getattr(policy, f.name)}
        allowed = {"epsilon", "signal"} if name.startswith(("fixed length", "epsilon")) else {next(iter(different), "")}
        assert different <= allowed, name
    assert changed["no branches"].max_branches == changed["k_max = 1"].max_branches == 1


def test_rows_are_what_the_engine_says(traces: list[RequestTrace]) -> None:
    rows = ablate(traces, LATENCY, choose_policies(traces, LATENCY, max_tried=AUTO_TRIED))
    plain_s = sum(_decode_s("autoregressive", trace) for trace in traces)
    for row in rows[:3]:
        assert row.speedup == pytest.approx(plain_s / sum(_decode_s(row.policy, trace) for trace in traces))
    assert rows[0].change == AS_CHOSEN
    assert rows[0].speedup > 0.9 * max(row.speedup for row in rows)  # it was chosen
    assert ablate(traces, LATENCY, {}) == []


def _decode_s(label: str, trace: RequestTrace) -> float:
    run = simulate(parse_policy(label), [trace], LATENCY, record_ops=False)
    return sum(times.end_s - times.start_s for _, times in run.rounds)


def test_the_table_fits_a_terminal_and_is_read_as_it_was_written(traces: list[RequestTrace], tmp_path: Path) -> None:
    rows = ablate(traces, LATENCY, choose_policies(traces, LATENCY, max_tried=AUTO_TRIED))
    assert read_ablation(tmp_path) == []
    write_report(tmp_path, ABLATION, rows)
    assert read_ablation(tmp_path) == rows
    out = io.StringIO()
    print_ablation(Console(file=out, width=80), rows)
    told = out.getvalue()
    assert f"{rows[1].speedup:.2f} ({rows[1].rollback:.0%})" in told
    assert max(len(line) for line in told.splitlines() if not line.startswith(AS_CHOSEN)) <= 80
    print_ablation(Console(file=out, width=80), [])
    assert out.getvalue() == told
    (tmp_path / f"{ABLATION}.json").write_text('{"ablation": [{"change": 1}]}', encoding="utf-8")
    with pytest.raises(RunError, match="ablation"):
        read_ablation(tmp_path)

"""Other costs: verification as told, choices anew, DSI beside them, and where a method stops paying."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from analysis.check.reports import write_report
from analysis.explore.inputs import read_latency
from analysis.tuning.choosing import AUTO_TRIED, choose_policies, without_losing_predictor
from analysis.tuning.oracles import CLASSES, POSITIONS, oracles, told_classes
from analysis.tuning.what_if import (
    AS_MEASURED,
    FLAT,
    WHAT_IF,
    Costs,
    print_what_if,
    read_what_if,
    stops_paying,
    what_if,
)
from sim.decoding.closed_forms import dsi_speedup
from sim.decoding.informed import Informed
from sim.latency.constant import ConstantLatency
from sim.latency.widening import LinearVerification
from tests.analysis.tuning.exhaustive import flat_latency, geometric_traces
from traces.fits.acceptance.informed import InformedLaw
from traces.schema import Actor, OpKind, OpShape


def test_a_widening_changes_verification_alone() -> None:
    base = ConstantLatency(draft_s=0.1, verify_s=1.0, branch_s=0.01)
    wide = LinearVerification(base, 0.25)
    assert wide.mean_array(OpKind.VERIFY, [1, 3], 1, 0).tolist() == [1.0, 1.5]
    assert wide.mean_s(OpShape(Actor.TARGET, OpKind.VERIFY, 3, 1, 9)) == 1.5
    assert wide.draw_s(OpShape(Actor.TARGET, OpKind.VERIFY, 3, 1, 9), np.random.default_rng(0)) == 1.5
    branch = OpShape(Actor.DRAFT, OpKind.BRANCH, 1, 5, 9)
    assert wide.mean_s(branch) == base.mean_s(branch)
    fitted = read_latency(
        Path(__file__).parents[2] / "data" / "run_v1" / "calibration.json"
    )  # has a factor for each width
    one, three = LinearVerification(fitted, 0.25).mean_array(OpKind.VERIFY, [1, 3], 1, 50).tolist()
    assert one == fitted.mean_array(OpKind.VERIFY, 1, 1, 50)
    assert three == pytest.approx(1.5 * one)
    with pytest.raises(ValueError, match="widening"):
        LinearVerification(base, -0.1)


@pytest.mark.long
def test_flat_verification_is_found_again_and_a_dear_one_ends_what_pays(tmp_path: object) -> None:
    traces = geometric_traces(0.8, num=3, num_tokens=64)
    dear = LinearVerification(flat_latency(6.0), 0.3)
    found = what_if(traces, dear, is_quick=True)
    by_name = {cost.name: cost for cost in found.costs}
    assert set(by_name) == {AS_MEASURED, FLAT}
    flat = what_if(traces, flat_latency(6.0), is_quick=True)
    assert by_name[FLAT].speedups == pytest.approx(flat.costs[0].speedups)
    for name in ("fixed_length", "pearl", "outcome_hedging"):
        assert by_name[FLAT].speedups[name] > by_name[AS_MEASURED].speedups[name]
    row = flat.simulated[0]
    told = float(dsi_speedup(0.8, int(row.settings.removeprefix("lookahead=")), 6.0, has_plain_server=True))
    assert row.speedup == pytest.approx(told, rel=0.15)  # three short requests
    out = io.StringIO()
    print_what_if(Console(file=out, width=80), found)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert f"{by_name[FLAT].speedups['pearl']:.2f}" in out.getvalue()


def test_a_report_of_other_costs_is_read_as_it_was_written(tmp_path: object) -> None:
    folder = Path(str(tmp_path))
    found = what_if(geometric_traces(0.7, num=1, num_tokens=24), flat_latency(4.0), is_quick=True)
    found = replace(found, stops_paying={"0": {"pearl": None, "fixed_length": 0.12}})
    write_report(folder, WHAT_IF, found)
    assert read_what_if(folder) == found


def test_a_method_stops_paying_where_its_line_crosses_one() -> None:
    def cost(widening: float | None, pearl: float, ratio: float = 5.0) -> Costs:
        return Costs(
            temperature=0.0,
            name="x",
            cost_ratio=ratio,
            widening=widening,
            speedups={"pearl": pearl, "late": 1.5, "never": 0.9},
            policies={},
        )

    line = [cost(None, 1.3), cost(0.0, 2.0), cost(0.0, 3.0, ratio=9.0), cost(0.2, 1.2), cost(0.4, 0.8)]
    assert stops_paying(line) == {"pearl": 0.3, "late": None, "never": 0.0}


def test_oracles_stand_beside_the_methods_and_who_knows_more_is_faster() -> None:
    law = InformedLaw(mean=0.8, confidence_sd=1.0, hidden_sd=1.5)
    model = Informed(law=law, window=4, tail_depth=10)
    traces = [model.sample(100, index, rng) for index, rng in enumerate(np.random.default_rng(0).spawn(4))]
    found = what_if(traces, flat_latency(6.0), is_quick=True)
    dsi_row, classes, positions = found.simulated
    alone = found.costs[0].speedups["specbranch without H-RAD"]
    assert (dsi_row.family, classes.family, positions.family) == ("dsi", CLASSES, POSITIONS)
    assert alone < classes.speedup < positions.speedup
    assert (classes.kind, positions.kind) == ("simulated", "simulated")
    by_name = {oracle.name: oracle for oracle in oracles(traces, flat_latency(6.0))}
    assert classes.tokens_per_s == pytest.approx(by_name[CLASSES].choice.tokens_per_s)
    assert by_name[CLASSES].choice.policy.needs.class_window == by_name[CLASSES].window


@pytest.mark.parametrize(("known", "is_kept"), [(1.0, True), (0.0, False)])
def test_a_predictor_that_loses_to_none_is_left_out_and_one_that_wins_is_not(known: float, is_kept: bool) -> None:
    law = InformedLaw(mean=0.8, confidence_sd=0.2, hidden_sd=2.0)
    model = Informed(law=law, window=4, tail_depth=10)
    traces = [model.sample(100, index, rng) for index, rng in enumerate(np.random.default_rng(0).spawn(4))]
    chosen = choose_policies(told_classes(traces, 4, known), flat_latency(6.0), max_tried=AUTO_TRIED)
    kept = without_losing_predictor(chosen)
    assert ("specbranch" in kept, "specbranch without branches" in kept) == (is_kept, is_kept)
    assert set(chosen) - set(kept) <= {"specbranch", "specbranch without branches"}
    remark = kept["specbranch without H-RAD"].remark
    assert remark == "" if is_kept else "the H-RAD predictor is left out: with it SpecBranch is predicted at" in remark

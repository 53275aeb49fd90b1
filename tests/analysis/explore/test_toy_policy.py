"""A policy that nobody knows is a policy like any other: one class, and one line where labels are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.cli.tables import short_label
from analysis.explore.exploration import explore_study
from analysis.figures.plots import break_even_map, pareto_front_plot, speedup_by_draft_length
from analysis.study.study import Family, Range, Study
from sim.decoding.policies.base import Defaults, Observation
from sim.decoding.policies.catalog import POLICIES, PolicyError, label_of, parse_policy
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.replay import replay
from sim.engine import simulate, summarise
from sim.latency.constant import ConstantLatency
from sim.sweep.rules import ARRAY_RULES
from sim.sweep.sweep import sweep
from tests.analysis.made_up_run import write_run
from traces.folder.run import read_run
from traces.schema import Signal


@dataclass(frozen=True)
class Alternating(Defaults):
    """Draft draft_length tokens in every other round, one in between."""

    draft_length: int = 3

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 0 if pending else self.draft_length if seen.num_rounds % 2 == 0 else 1


TOY, LATENCY = Alternating(4), ConstantLatency(draft_s=0.1, verify_s=1.0, host_s=0.01)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made-up") / "run", num_requests=4)


@pytest.fixture
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that a policy of ours takes."""
    monkeypatch.setitem(POLICIES, "alternating", Alternating)


def test_it_is_simulated_and_swept_alike_though_no_array_rule_knows_it(run_dir: Path) -> None:
    traces = read_run(run_dir).traces()
    assert Alternating not in ARRAY_RULES
    simulated = simulate(TOY, traces, LATENCY)
    assert [round_ for round_, _ in simulated.rounds] == [round_ for trace in traces for round_ in replay(TOY, trace)]
    swept = sweep([TOY, FixedLength(4)], traces, LATENCY)
    assert swept.decode_s[0].sum() == pytest.approx(summarise(simulated).decode_s, rel=1e-9)
    assert swept.counts["num_drafted"][0].sum() < swept.counts["num_drafted"][1].sum()
    tried = sweep([FixedLength(16), TOY], traces, LATENCY).decode_tokens_per_s
    assert tried[1] > tried[0]


@pytest.mark.usefixtures("_listed")
def test_one_line_gives_it_a_label_that_is_read_back() -> None:
    assert label_of(TOY) == "alternating:draft_length=4"
    assert parse_policy("alternating:draft_length=4") == TOY
    assert short_label(label_of(TOY)) == "alternating 4"
    with pytest.raises(PolicyError, match="has no setting 'gamma'"):
        parse_policy("alternating:gamma=4")


@pytest.mark.usefixtures("_listed")
def test_it_is_explored_as_a_family_and_drawn_without_being_named_in_any_palette(run_dir: Path, tmp_path: Path) -> None:
    study = Study(policies=[Family(method="alternating", settings={"draft_length": Range(first=1, last=4)}), "pearl"])
    explored = explore_study(run_dir, tmp_path / "out", study, latency=LATENCY)
    table = explored.table[explored.table.method == "alternating"].copy()
    assert len(table) == 4
    assert table.speedup.gt(0).all()
    table["draft_length"] = [parse_policy(label).draft_length for label in table.policy]  # type: ignore[attr-defined]
    lines = table[["method", "draft_length", "speedup"]].assign(low=table.speedup_low, high=table.speedup_high)
    none = pd.DataFrame(columns=["method", "draft_length", "speedup", "low", "high"])
    axes = speedup_by_draft_length(Figure().subplots(), lines, none, ["alternating"])
    assert "alternating, predicted" in [text.get_text() for text in axes.get_legend().get_texts()]
    axes = pareto_front_plot(Figure().subplots(), explored.table, "objective_memory")
    won = pd.DataFrame([(0.5, 4.0, "alternating", 1.5)], columns=["alpha", "cost_ratio", "method", "speedup"])
    colours = break_even_map(Figure().subplots(), won).collections[0].get_array()
    assert colours is not None
    assert not pd.isna(colours).any()  # a region of its own
    assert {"alternating", "PEARL"} <= {text.get_text() for text in axes.get_legend().get_texts()}


def test_without_that_line_it_goes_by_its_module_and_class() -> None:
    label = label_of(TOY)
    assert label == f"{__name__}.Alternating:draft_length=4"
    assert parse_policy(label) == TOY
    assert short_label(label).endswith(".Alternating 4")

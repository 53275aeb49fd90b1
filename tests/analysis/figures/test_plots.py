"""Figures are drawn from their data, on the Axes that they are given; maps and bounds say what they should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures import plots
from analysis.papers.bounds import branch_oracle_speedups, entropy_bound, oracle_speedups
from analysis.papers.maps import CLOSED_FORMS, closed_form_map, oracle_map, simulated_map, winners
from sim.decoding.acceptance_models import Geometric
from sim.decoding.closed_forms import sps_speedup
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.engine import simulate, summarise
from sim.latency.constant import ConstantLatency
from traces.fits.acceptance.curves import curve_of
from traces.schema import RequestTrace

LATENCY = ConstantLatency(draft_s=0.1, verify_s=1.0)


@pytest.fixture
def axes() -> object:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def drawn(axes: object) -> None:
    """Everything is really drawn."""
    axes.figure.canvas.draw()  # type: ignore[attr-defined]


def traces(alpha: float = 0.7, num: int = 10) -> list[RequestTrace]:
    rngs = np.random.default_rng(0).spawn(num)
    return [Geometric(alpha=alpha).sample(150, index, rng) for index, rng in enumerate(rngs)]


def test_speedup_by_draft_length_shows_all_four_lines(axes: object) -> None:
    lengths = np.arange(1, 9)
    recorded = traces()
    base = summarise(simulate(Autoregressive(), recorded, LATENCY)).decode_s
    gains = [base / summarise(simulate(FixedLength(int(n)), recorded, LATENCY)).decode_s for n in lengths]
    frame = pd.DataFrame(
        {"method": "fixed_length", "draft_length": lengths, "speedup": gains, "low": gains, "high": gains}
    )
    closed = pd.DataFrame({"draft_length": lengths, "speedup": sps_speedup(0.7, lengths, 10)})
    oracle = oracle_speedups(recorded, LATENCY, lengths.tolist())
    found = plots.speedup_by_draft_length(axes, frame, frame, ["fixed_length"])  # type: ignore[arg-type]
    plots.closed_form_line(found, closed, "fixed_length")
    plots.bound_line(found, oracle, "serial oracle")
    assert found is axes
    told = {text.get_text() for text in found.get_legend().get_texts()}
    assert told == {
        "speculative sampling, predicted",
        "speculative sampling, measured",
        "speculative sampling, closed form",
        "serial oracle",
    }
    assert to_hex(found.get_lines()[0].get_color()).upper() == plots.colour_of("fixed_length")
    drawn(found)
    np.testing.assert_allclose(gains, closed.speedup, rtol=0.06)


def test_branches_against_draft_length_marks_the_best_cell(axes: object) -> None:
    table = pd.DataFrame(
        [
            (length, count, 3 - (length - 4) ** 2 / 9 - abs(count - 2) / 4)
            for length in range(2, 8)
            for count in (1, 2, 4)
        ],
        columns=["draft_length", "max_branches", "speedup"],
    )
    found = plots.branches_by_draft_length(axes, table)  # type: ignore[arg-type]
    star = next(line for line in found.get_lines() if line.get_marker() == "*")
    assert [label.get_text() for label in found.get_xticklabels()][int(star.get_xdata()[0])] == "4"
    assert [label.get_text() for label in found.get_yticklabels()][int(star.get_ydata()[0])] == "2"
    drawn(found)


def test_the_break_even_map_names_the_winner_of_each_region(axes: object) -> None:
    won = winners(closed_form_map(np.linspace(0.05, 0.95, 10), np.geomspace(1, 32, 9)))
    at = won.set_index(["alpha", "cost_ratio"])
    assert at.loc[(0.05, 1.0), "method"] == "autoregressive"
    assert at.loc[(0.95, 32.0), "method"] == "saguaro"  # every outcome hedged, and branches cost nothing here
    assert (won.speedup >= 1).all()
    found = plots.break_even_map(axes, won)  # type: ignore[arg-type]
    names = {text.get_text() for text in found.get_legend().get_texts()}
    assert names == {plots.NAMES[method] for method in set(won.method)}
    drawn(found)


def test_closed_form_maps_hold_the_best_length_of_each_method() -> None:
    table = closed_form_map([0.8], [8.0])
    for method, form in CLOSED_FORMS.items():
        row = table[table.method == method].iloc[0]
        gains = [float(form(np.float64(0.8), np.float64(n), np.float64(8.0))) for n in range(1, 17)]
        assert row.speedup == pytest.approx(max(gains))


def test_simulated_maps_agree_with_closed_forms() -> None:
    policies = [Autoregressive(), *map(FixedLength, range(1, 9)), *map(Pearl, range(2, 9))]
    table = simulated_map(policies, [0.5, 0.8], [4.0, 8.0], num_requests=30, num_tokens=400)
    closed = closed_form_map([0.5, 0.8], [4.0, 8.0], ["fixed_length", "pearl"])
    both = table.merge(closed, on=["alpha", "cost_ratio", "method"])
    assert len(both) == 4 * 3
    np.testing.assert_allclose(both.speedup_x, both.speedup_y, rtol=0.06)


def test_no_method_beats_the_oracle_of_a_map(axes: object) -> None:
    alphas, ratios = np.linspace(0.1, 0.9, 5).tolist(), [1.0, 2.0, 5.0, 20.0]
    best = closed_form_map(alphas, ratios).groupby(["alpha", "cost_ratio"]).speedup.max()
    oracle = oracle_map(alphas, ratios).set_index(["alpha", "cost_ratio"]).speedup
    assert (best <= oracle * (1 + 1e-12)).all()
    table = simulated_map(
        [Autoregressive(), FixedLength(4), Pearl(4)],
        [0.5, 0.8],
        [2.0, 8.0],
        num_requests=40,
        num_tokens=400,
        with_bound=True,
    )
    assert (table.speedup <= table.bound).all()
    sampled = table.groupby(["alpha", "cost_ratio"]).bound.first()
    exact = oracle_map([0.5, 0.8], [2.0, 8.0]).set_index(["alpha", "cost_ratio"]).speedup
    np.testing.assert_allclose(sampled, exact, rtol=0.05)
    found = plots.break_even_map(axes, winners(closed_form_map(alphas, ratios)))  # type: ignore[arg-type]
    lines = len(found.collections)
    plots.bound_contours(found, oracle.reset_index(), "overlap oracle")
    assert len(found.collections) == lines + 1
    assert {"overlap oracle", "SSD"} <= {text.get_text() for text in found.get_legend().get_texts()}
    drawn(found)


def test_acceptance_by_position_departs_from_the_iid_line(axes: object) -> None:
    curve = curve_of(traces(), 6)
    values = np.array(curve.conditional)
    measured = pd.DataFrame(
        {"position": range(1, 7), "acceptance": values, "low": values - 0.05, "high": values + 0.05}
    )
    found = plots.acceptance_by_position(axes, measured, {"hazard": [0.7] * 6})  # type: ignore[arg-type]
    told = [text.get_text() for text in found.get_legend().get_texts()]
    assert told == ["i.i.d. from position 1", "hazard", "measured"]
    drawn(found)


def test_the_pareto_plot_rings_the_front(axes: object) -> None:
    table = pd.DataFrame(
        {
            "method": ["pearl", "pearl", "fixed_length"],
            "is_pareto": [True, False, True],
            "objective_memory": [8.0, 9.0, 4.0],
            "tokens_per_s": [3.0, 2.0, 1.0],
        }
    )
    found = plots.pareto_front_plot(axes, table, "objective_memory")  # type: ignore[arg-type]
    assert len(found.collections[-1].get_offsets()) == 2
    drawn(found)


@pytest.mark.parametrize("make", [FixedLength, lambda n: ConfidenceStop(0.5, n)])
def test_no_serial_rule_beats_the_serial_oracle(
    make: Callable[[int], FixedLength], make_trace: Callable[..., RequestTrace]
) -> None:
    recorded = [make_trace(seed=seed) for seed in range(6)]
    base = summarise(simulate(Autoregressive(), recorded, LATENCY)).decode_s
    oracle = oracle_speedups(recorded, LATENCY, [4]).speedup[0]
    overlapped = oracle_speedups(recorded, LATENCY, [4], overlaps=True).speedup[0]
    assert base / summarise(simulate(make(4), recorded, LATENCY)).decode_s < oracle < overlapped


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("length", [3, 6])
def test_no_branch_point_beats_the_branch_oracle(
    count: int, length: int, make_trace: Callable[..., RequestTrace]
) -> None:
    recorded = [make_trace(seed=seed, num_tokens=120) for seed in range(6)]
    base = summarise(simulate(Autoregressive(), recorded, LATENCY)).decode_s
    oracle = branch_oracle_speedups(recorded, LATENCY, [length], max_branches=count)
    overlapped = oracle_speedups(recorded, LATENCY, [length], overlaps=True).speedup[0]
    for epsilon, signal in ((0.0, "max_prob"), (0.3, "max_prob"), (0.8, "margin")):
        rule = f"epsilon={epsilon},signal={signal},prior_length={length},uses_hrad=false"
        for more in ("on_miss=serial", "on_miss=overlap,is_fixed_count=true"):
            policy = parse_policy(f"specbranch:draft_length={length},max_branches={count},{rule},{more}")
            assert base / summarise(simulate(policy, recorded, LATENCY)).decode_s <= oracle.speedup[0]
    assert base / summarise(simulate(Pearl(length + 1), recorded, LATENCY)).decode_s <= oracle.speedup[0]
    assert oracle.speedup[0] <= overlapped
    assert 1 < oracle.tokens_per_forward[0] <= length + 1


def test_the_entropy_bound_grows_with_the_logarithm_and_falls_with_entropy() -> None:
    few, many = entropy_bound([1.0, 2.0], [2.0, 6.0], [4, 16])
    assert few == pytest.approx((1.5 + 4.0) * np.log(4) / 1.5**2)
    assert many == pytest.approx(2 * few)
    assert entropy_bound([3.0], [9.0], 8) < entropy_bound([1.0], [1.0], 8)
    assert entropy_bound([9.0], [81.0], 2) == 1.0
    assert np.isinf(entropy_bound([0.0], [0.0], 8))
    with pytest.raises(ValueError, match="target_log_moment of every position"):
        entropy_bound([1.0], [np.nan], 8)


@pytest.mark.parametrize(("methods", "num_bounds", "width"), [(2, 0, 5.2), (4, 5, 6.4)])
def test_the_legend_of_draft_lengths_is_whole_and_beside_the_lines(methods: int, num_bounds: int, width: float) -> None:
    names = ["fixed_length", "pearl", "saguaro", "specbranch"][:methods]
    rows = [(name, length, 1.2, 1.1, 1.3) for name in names for length in (1, 2, 8)]
    table = pd.DataFrame(rows, columns=["method", "draft_length", "speedup", "low", "high"])
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = plots.speedup_by_draft_length(figure.subplots(), table, table, names)
    for index in range(num_bounds):
        plots.bound_line(axes, table[table.method == "pearl"], f"oracle with {index + 2} branches")
    canvas.draw()
    legend = axes.get_legend()
    assert legend is not None
    box, inner = legend.get_window_extent(), axes.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 < inner.y0
    assert inner.height > 0.5 * figure.bbox.height

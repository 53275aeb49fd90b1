"""The figures of an exploration: from its folder and the run behind it to PNG files beside one another."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.explore.exploration import LATENCIES
from analysis.explore.inputs import LatencySource, doubt_of_latency, latency_of
from analysis.explore.work.evaluation import Timing
from analysis.figures import plots
from analysis.figures.acceptance import acceptance_by_place
from analysis.figures.saving import save_figure
from analysis.papers.bounds import branch_oracle_speedups, entropy_speedups, oracle_speedups
from analysis.papers.maps import CLOSED_FORMS, LONGEST, closed_form_map, oracle_map, simulated_map, winners
from analysis.study.candidates import mapped_policies
from analysis.study.questions import Question, make_questions, traces_of
from analysis.study.study import make_study
from analysis.tuning.measured import typical_context
from sim.decoding.acceptance_models import Chained
from sim.decoding.policies.catalog import parse_policy
from sim.latency.base import LatencyModel
from sim.latency.placement import Placement, adjusted, cost_ratio_of
from traces.fits.acceptance.chain import fit_hazard, fit_markov
from traces.folder.run import Run, read_run
from traces.folder.writer import check_new_folder
from traces.metrics.machine_speed import machine_speed_of
from traces.metrics.speeds import Speed, doubt_of, measured_speeds
from traces.schema import RequestTrace

METHODS = ("fixed_length", "pearl", "saguaro", "specbranch")
NUM_POSITIONS = 8
NUM_NAMED = 3  # methods beside the star of a map
BRANCHES = 4  # of the oracle that stands for SpecBranch
MIN_GAIN = 0.01  # over autoregressive decoding, to win a region of a map


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What the figures of one temperature and alignment show: its scenario on two devices as calibrated, or the first one
    that was explored.

    table: its explored rows. latency: of each model on its own device, without a link, mean times.
    measured: real speeds; none where the scenario was not run.
    entropies: (positions, 2) of the target, entropy and second log-moment; unknown for an alignment that was not recorded.
    is_sampled: the traces are drawn from a model of acceptance. doubt: why its times support no claim; empty where they do.
    """

    temperature: float
    others: tuple[str, ...]
    traces: Sequence[RequestTrace]
    table: pd.DataFrame
    latency: LatencyModel
    measured: Sequence[Speed]
    entropies: pd.DataFrame
    is_sampled: bool
    doubt: str = ""

    def add_title(self, axes: Axes, question: str, *notes: str, is_timed: bool = True) -> Axes:
        """A title: what is asked and, below, where: what the scenario shares with the recorded run is left out, and so are
        empty notes. is_timed: whether times are shown, of which the doubt is."""
        where = "; ".join(filter(None, [*self.others, *notes]))
        lines = [f"T = {self.temperature:g}: {question}"] + ([f"({where})"] if where else [])
        if self.doubt and is_timed:
            lines.append(textwrap.fill(self.doubt, 80))
        axes.set_title("\n".join(lines), fontsize=10)
        return axes

    @property
    def stem(self) -> str:
        """The scenario, for file names."""
        return "-".join([f"T{self.temperature:g}", *(re.sub(r"[^\w.=]+", "_", other) for other in self.others)])

    @property
    def acceptance(self) -> float:
        """Share of positions at which the draft is right."""
        return float(np.mean([rank == 0 for trace in self.traces for rank in trace.ranks]))

    @property
    def cost_ratio(self) -> float:
        """Target forward / draft forward."""
        return cost_ratio_of(self.latency, typical_context(self.traces))

    @property
    def entropy_note(self) -> str:
        """What the target's entropy lets any drafter gain here, for a title; empty where nothing bounds it."""
        if self.temperature == 0 or self.entropies.isna().any(axis=None):
            return ""
        moments = self.entropies.target_entropy, self.entropies.target_log_moment
        bound = entropy_speedups(*moments, self.latency, range(1, LONGEST + 1), typical_context(self.traces))
        return f"entropy bound: {bound.speedup.max():.2f}"


def draw_figures(
    explored_dir: Path, output_dir: Path, *, measured_dir: Path | None = None, latency: LatencySource = None
) -> list[Path]:
    """Draw everything that an exploration can show. measured_dir: a run folder with real speeds, such as that of
    `specbranch validate`; the explored run's own by default. latency: what the exploration was given, if that was a model."""
    explored = read_run(explored_dir)
    if explored.meta.get("kind") != "explored":
        raise ValueError(f"{explored_dir} is not an exploration; give the --output-dir of `specbranch explore`.")
    if not explored.config["run"]:
        raise ValueError(f"{explored_dir} was explored without a run, so that there are no recorded outcomes to draw.")
    run, study = read_run(explored.config["run"]), make_study(explored.config["study"], where=str(explored_dir))
    named, used = explored.config["calibration"], explored_dir / LATENCIES
    if latency is None and not used.exists() and "latency" in explored.config:
        raise ValueError(f"{explored_dir} was explored with a latency model that has no file; give it as latency.")
    latency = latency_of(run, latency or (used if used.exists() else Path(named) if named else None))
    # Under latencies that were named nothing was run, unless the user says where.
    is_own = not named and "latency" not in explored.config
    measured = read_run(measured_dir) if measured_dir else run if is_own else None
    table = pd.read_parquet(explored_dir / "results.parquet")
    check_new_folder(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for question in make_questions(traces_of(run.traces(), study, where=str(run.folder)), latency, study):
        scenario = _scenario_of(question, run, measured, table)
        scenario = replace(scenario, doubt="; ".join(filter(None, (doubt_of_latency(latency), _doubt_of(scenario)))))
        for name, draw in FIGURES.items():
            figure = Figure(figsize=(6.4, 5.0), layout="constrained")
            FigureCanvasAgg(figure)
            if draw(figure.subplots(), scenario) is not None:
                path = output_dir / f"{name}-{scenario.stem}.png"
                save_figure(figure, path)
                paths.append(path)
    return paths


def _doubt_of(scenario: Scenario) -> str:
    """Of the times measured."""
    return doubt_of(
        *(sum(getattr(speed, name) for speed in scenario.measured) for name in ("num_unclean", "num_requests"))
    )


def _scenario_of(question: Question, run: Run, measured: Run | None, table: pd.DataFrame) -> Scenario:
    timings, traces = question.workload.timings, question.workload.traces
    timing = Timing() if Timing() in timings else timings[0]
    name = question.scenario(timing)
    here = table[table.scenario == name]
    settings = [vars(parse_policy(label)) for label in here.policy]
    for setting in ("draft_length", "max_branches"):
        here = here.assign(**{setting: [row.get(setting, np.nan) for row in settings]})
    entropies = pd.DataFrame({"target_entropy": [np.nan], "target_log_moment": [np.nan]})
    is_recorded = question.alignment == "recorded"
    if is_recorded:
        ids = {trace.request_id for trace in traces}
        entropies = run.alignment.loc[run.alignment.request_id.isin(ids), list(entropies.columns)]
    speeds: list[Speed] = []
    if is_recorded and timing == Timing() and measured is not None and not measured.rounds.empty:
        machine = machine_speed_of(measured.requests, measured.rounds)
        speeds = measured_speeds(measured.requests, machine.adjusted(measured.rounds))
    latency = adjusted(
        question.workload.latency,
        Placement(),  # a pair's cost ratio, and bounds above what a link or a shared device leaves
        cost_ratio=timing.cost_ratio,
        context_tokens=typical_context(traces),
        drafts=False,
    )
    return Scenario(
        temperature=question.temperature,
        others=tuple(part for part in name.split()[1:] if part != Timing().placement.label),
        traces=traces,
        table=here,
        latency=latency,
        measured=[speed for speed in speeds if speed.temperature == question.temperature and speed.speedup is not None],
        entropies=entropies,
        is_sampled=not is_recorded,
    )


def _by_length(axes: Axes, scenario: Scenario) -> Axes | None:
    """Speed-up against draft length: simulated, closed form, measured, oracles and the entropy bound."""
    rows = scenario.table[scenario.table.method.isin(METHODS) & scenario.table.draft_length.notna()]
    if rows.empty:
        return None
    best = rows.loc[rows.groupby(["method", "draft_length"]).speedup.idxmax()]
    predicted = best.assign(low=best.speedup_low, high=best.speedup_high)
    columns = ["method", "draft_length", "speedup", "low", "high"]
    points = [
        (speed.policy.partition(":")[0], length, speed.speedup, *(speed.speedup_interval or (np.nan, np.nan)))
        for speed in scenario.measured
        if (length := getattr(parse_policy(speed.policy), "draft_length", None)) is not None
    ]
    methods = [method for method in METHODS if method in set(best.method)]
    plots.speedup_by_draft_length(axes, predicted[columns], pd.DataFrame(points, columns=columns), methods)
    lengths = np.arange(1, int(best.draft_length.max()) + 1)
    for method in methods:
        alpha, ratio = np.array(scenario.acceptance), np.array(scenario.cost_ratio)
        gains = CLOSED_FORMS[method](alpha, lengths.astype(float), ratio)
        plots.closed_form_line(axes, pd.DataFrame({"draft_length": lengths, "speedup": gains}), method)
    for overlaps, label, colour in ((False, "serial oracle", "#999999"), (True, "overlap oracle", "#555555")):
        oracle = oracle_speedups(scenario.traces, scenario.latency, lengths.tolist(), overlaps=overlaps)
        plots.bound_line(axes, oracle, label, colour=colour)
    depth = min(trace.tail_depth for trace in scenario.traces)
    reachable = [length for length in lengths.tolist() if length < depth]
    for count, colour in (
        ((1, plots.colour_of("pearl")), (BRANCHES, plots.colour_of("specbranch"))) if reachable else ()
    ):
        oracle = branch_oracle_speedups(scenario.traces, scenario.latency, reachable, max_branches=count)
        plots.bound_line(axes, oracle, f"oracle with {count} branch{'es' if count > 1 else ''}", colour=colour)
    if scenario.temperature > 0 and scenario.entropies.notna().all(axis=None):
        context = typical_context(scenario.traces)
        moments = scenario.entropies.target_entropy, scenario.entropies.target_log_moment
        bound = entropy_speedups(*moments, scenario.latency, lengths.tolist(), context)
        plots.bound_line(axes, bound, "entropy bound, leading term", colour="#000000")
    return scenario.add_title(axes, "how long should drafts be?")


def _branches(axes: Axes, scenario: Scenario) -> Axes | None:
    """Branch count against draft length; the oracle that hedges every outcome stands in the title."""
    rows = scenario.table.dropna(subset=["draft_length", "max_branches"])
    rows = rows[rows.method == "specbranch"]
    if rows.draft_length.nunique() < 2 or rows.max_branches.nunique() < 2:
        return None
    lengths = sorted(map(int, rows.draft_length.unique()))
    oracle = oracle_speedups(scenario.traces, scenario.latency, lengths, overlaps=True).speedup.max()
    plots.branches_by_draft_length(axes, rows)
    return scenario.add_title(
        axes, "do branches pay in SpecBranch?", f"overlap oracle: {oracle:.2f}", scenario.entropy_note
    )


def _break_even(axes: Axes, scenario: Scenario) -> Axes:
    """Which method wins where, in closed form, and where this pair stands."""
    alphas, ratios = np.linspace(0.05, 0.95, 37), np.geomspace(1, 40, 40)
    plots.break_even_map(axes, winners(closed_form_map(alphas.tolist(), ratios.tolist()), MIN_GAIN))
    plots.bound_contours(axes, oracle_map(alphas.tolist(), ratios.tolist()), "overlap oracle")
    return _with_this_pair(axes, scenario, "in closed form", "branches and host for free")


def _break_even_simulated(axes: Axes, scenario: Scenario) -> Axes | None:
    """The same by replay, acceptance clustered as in this pair's traces, and moved to other means."""
    if scenario.acceptance in (0.0, 1.0) or not all(trace.signals for trace in scenario.traces):
        return None
    chain = fit_hazard(scenario.traces)
    depth = min(trace.tail_depth for trace in scenario.traces)
    policies = [policy for policy in mapped_policies() if policy.needs.tail_depth <= depth]
    table = simulated_map(
        policies,
        np.linspace(0.2, 0.9, 8).tolist(),
        np.geomspace(1.5, 40, 9).tolist(),
        model_of=lambda alpha: Chained(chain.shifted_to(alpha), scenario.traces),
        with_bound=True,
    )
    plots.break_even_map(axes, winners(table, MIN_GAIN))
    plots.bound_contours(axes, table.assign(speedup=table.bound), "overlap oracle")
    return _with_this_pair(axes, scenario, "by replay of clustered acceptance", "branches and host for free")


def _with_this_pair(axes: Axes, scenario: Scenario, how: str, free: str) -> Axes:
    """A star where the pair stands, in the colour of the method that the exploration found fastest, with the speed-ups that it
    predicts: the map leaves out what branches, wider verifications and the host cost. free: what costs nothing on the map.
    """
    best = scenario.table.groupby("method").speedup.max().sort_values(ascending=False)
    gains = {str(method): float(gain) for method, gain in best.items()}
    fastest = next(iter(gains)) if max(gains.values()) > 1 + MIN_GAIN else "autoregressive"
    named = dict(list(gains.items())[:NUM_NAMED])
    plots.star_of_pair(axes, scenario.cost_ratio, scenario.acceptance, fastest, named)
    notes = (free, "star: this pair as explored, all costs counted", scenario.entropy_note)
    return scenario.add_title(axes, f"which method wins {how}?", *notes)


def _acceptance(axes: Axes, scenario: Scenario) -> Axes | None:
    """Acceptance by position in the round, and the lines that it departs from or follows."""
    measured = acceptance_by_place(scenario.traces, NUM_POSITIONS)
    if measured is None:
        return None
    chains = {"hazard by run length": fit_hazard(scenario.traces), "Markov": fit_markov(scenario.traces)}
    plots.acceptance_by_position(
        axes,
        measured,
        {name: chain.round_law(len(measured)).conditional for name, chain in chains.items()},
        label="sampled" if scenario.is_sampled else "measured",
    )
    return scenario.add_title(axes, "is acceptance the same at every position?", is_timed=False)


def _pareto(axes: Axes, scenario: Scenario) -> Axes | None:
    """Speed against the study's second objective."""
    others = [name for name in scenario.table.columns if name.startswith("objective_") and name != "objective_speed"]
    if not others:
        return None
    plots.pareto_front_plot(axes, scenario.table, others[0])
    return scenario.add_title(axes, "what does speed cost?")


FIGURES: dict[str, Callable[[Axes, Scenario], Axes | None]] = {
    "speedup_by_draft_length": _by_length,
    "branches_by_draft_length": _branches,
    "break_even": _break_even,
    "break_even_simulated": _break_even_simulated,
    "acceptance_by_position": _acceptance,
    "pareto": _pareto,
}

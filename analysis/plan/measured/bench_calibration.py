"""`specbranch calibrate --bench`: step costs from an engine's own benchmarks, a table from these, and the next run to make.

Few benchmarks leave much open. What they leave open is drawn from the fit's covariance (`StepCostFit.drawn`). The gains of the
table get their intervals from these draws, and so does the worth of a further run: of all that were not made, the one whose
time says most of the gains that are uncertain (Gaussian conditioning on the draws; MacKay 1992, "Information-based objective
functions for active data selection", here with the mean deviation of the gains as objective).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.plan.dialects.files import ServedTable
from analysis.plan.measured.benches import VLLM
from analysis.plan.measured.fit import ServerFit, fit_server
from analysis.plan.measured.residuals import BENCH_ERROR, residuals_of
from analysis.plan.methods import best_lengths
from sim.serving.rounds.base import ServerLoad
from sim.serving.rounds.length_rules import GoodputRule, Joining
from sim.serving.settings import Server
from traces.files import write_text
from traces.fits.step_costs import StepCosts
from traces.importers.base import ForeignTraceError
from traces.importers.engines.records import read_acceptance
from traces.importers.server_bench import ServerBench, read_server_bench

Floats = NDArray[np.float64]

MIN_BENCHES = 3
MAX_NUM_SEQS = 256  # of the engine's batch, which no benchmark says
LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class NextRun:
    """The benchmark that would narrow the gains most. before, after: half-widths of their 95% intervals, in the mean."""

    draft_length: int
    max_concurrency: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"The run that would narrow this most: K = {self.draft_length} at {self.max_concurrency} requests at once; gains "
            f"are known to ±{self.before:.1%} in the mean, with it to ±{self.after:.1%}."
        )


@dataclass(frozen=True, kw_only=True)
class BenchCalibration:
    """server: what was fitted. served: the table with its gains. next_run: None where nothing is left to try."""

    server: ServerFit
    served: ServedTable
    num_benches: int
    kv_tokens: int | None
    next_run: NextRun | None

    @property
    def engine(self) -> Server:
        """What was read off the benchmarks of the engine that drafts."""
        return self.server.engines[self.served.draft]


def calibrate_benches(folder: Path) -> BenchCalibration:
    """Of a folder that `specbranch import` wrote. The longest draft that is considered is the longest whose acceptance was
    counted.

    Raises ForeignTraceError for a folder without benchmarks of one draft, or fewer than three.
    """
    benches = read_server_bench(folder / "benches.csv")
    drafts = sorted({bench.draft for bench in benches if bench.draft_length})
    if len(drafts) != 1 or len(benches) < MIN_BENCHES:
        raise ForeignTraceError(
            f"{folder} holds {len(benches)} benchmarks with {len(drafts)} drafts; a calibration needs at least {MIN_BENCHES}, "
            "some of them with one draft at one or two lengths, and best one without."
        )
    record = read_acceptance(folder / "acceptance.json")
    acceptance = record.acceptance()
    server = fit_server(benches, engine=VLLM)
    costs = server.steps.step_costs(drafts[0])
    residual = residuals_of(benches, server.steps.residuals).at
    rng = np.random.default_rng(0)
    possible = tuple(server.steps.drawn(rng).step_costs(drafts[0]) for _ in range(NUM_DRAWS))
    longest = len(acceptance.conditional) if record.marginal else record.draft_length or 1
    num = sum(bench.num_requests for bench in benches)
    prompt, output = (sum(getattr(b, name) for b in benches) / num for name in ("input_tokens", "output_tokens"))
    joining, context = Joining(prompt, max(output, 1.0)), prompt + output / 2
    served = ServedTable(
        table=best_lengths(costs, acceptance, longest, context, joining, residual=residual),
        costs=costs,
        acceptance=acceptance,
        mean_context=context,
        joining=joining,
        possible=possible,
        residual=residual,
        max_num_seqs=MAX_NUM_SEQS,
        draft=drafts[0],
        method=next(bench.method for bench in benches if bench.draft_length),
    )
    kv_tokens = min((bench.kv_tokens for bench in benches if bench.draft_length and bench.kv_tokens), default=None)
    return BenchCalibration(
        server=server,
        served=served,
        num_benches=len(benches),
        kv_tokens=kv_tokens,
        next_run=next_run(served, benches, longest, kv_tokens),
    )


def write_bench_calibration(result: BenchCalibration, output_dir: Path) -> None:
    """step_costs.json for plans and advice, and summary.json with the rows, their gains and the next run."""
    result.served.costs.write(output_dir / "step_costs.json")
    steps = result.server.steps
    summary = {
        "bench_calibration": {
            "num_benches": result.num_benches,
            "mean_abs_error": steps.mean_abs_error,
            "kv_tokens": result.kv_tokens,
            "rows": result.served.rows(),
            "next_run": None if result.next_run is None else asdict(result.next_run),
            "intervals_95": dict(steps.intervals),
        }
    }
    write_text(output_dir / "summary.json", json.dumps(summary, indent=2) + "\n")


def next_run(
    served: ServedTable, benches: Sequence[ServerBench], max_length: int, kv_tokens: int | None
) -> NextRun | None:
    """See the head of this file. Only loads that fit the memory, and lengths of at most max_length, are tried."""
    room = min(served.max_num_seqs, int((kv_tokens or 1 << 60) / (served.mean_context + 1)))
    loads = [load for load in LOADS if load <= max(room, 1)]
    made = {(bench.draft_length, bench.max_concurrency) for bench in benches}
    lengths = range(max_length + 1)
    speeds = np.array(
        [_log_speeds(served, costs, lengths, loads) for costs in served.possible]
    )  # (draws, lengths, loads)
    gains = speeds[:, 1:] - speeds[:, :1]
    spread = gains - gains.mean(axis=0)
    before = spread.var(axis=0, ddof=1)
    best: NextRun | None = None
    for length in lengths:
        for place, load in enumerate(loads):
            if (length, load) in made:
                continue
            run = speeds[:, length, place] - speeds[:, length, place].mean()
            shared = np.tensordot(run, spread, 1) / (len(run) - 1)
            after = np.maximum(before - shared**2 / (run.var(ddof=1) + BENCH_ERROR**2), 0.0)
            half_widths = [1.96 * float(np.sqrt(variance).mean()) for variance in (before, after)]
            if best is None or half_widths[1] < best.after:
                best = NextRun(draft_length=length, max_concurrency=load, before=half_widths[0], after=half_widths[1])
    return best


def _log_speeds(
    served: ServedTable, costs: StepCosts, lengths: Sequence[int], loads: Sequence[int]
) -> list[list[float]]:
    """(lengths, loads) logarithms of tokens a second."""
    rule = GoodputRule(costs, served.acceptance.marginal(max(max(lengths), 1)), joining=served.joining)
    return [
        [float(np.log(rule.goodput(ServerLoad.alike(load, served.mean_context), length))) for load in loads]
        for length in lengths
    ]

"""Step costs of a server from its benchmarks, by least squares through the simulator.

A benchmark tells how long a thousand steps took together. Which steps these were, the simulator tells, and that hardly
depends on how long each took: a pass simulates every benchmark with the costs so far, keeps the forwards, and fits the costs
to what was measured, by the ratio of measured to simulated. A few passes settle. Nothing here knows the model or the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.explore.work.scale_out import Workers, run_tasks
from analysis.plan.measured.benches import SimulatedBench, simulate_bench
from sim.serving.settings import Server
from traces.fits.step_cost_fit import (
    Measurement,
    Prior,
    StepCostFit,
    draft_prior,
    fit_step_costs,
    target_prior,
    total_s,
)
from traces.importers.server_bench import ServerBench

NUM_PASSES = 4
AHEAD_STEPS = 1.25  # a request waits 0.5 to 1 steps for the one under way; with one more planned ahead, 1.5 to 2
MAX_QUIET = 32  # requests at once up to which prompts hardly wait for each other


@dataclass(frozen=True, kw_only=True)
class ServerFit:
    """A server, fitted.

    steps: its costs. engines: by draft ("" for none), what was read off its benchmarks of the engine.
    """

    steps: StepCostFit
    engines: Mapping[str, Server]

    def simulate(self, bench: ServerBench, *, seed: int) -> SimulatedBench:
        """One benchmark on this server."""
        return simulate_bench(bench, self.steps.step_costs(bench.draft), engine=self.engines[bench.draft], seed=seed)


def fit_server(
    benches: Sequence[ServerBench], *, engine: Server, seed: int = 0, workers: Workers | None = None
) -> ServerFit:
    """Fit a server to its benchmarks: with and without drafts, at any lengths and concurrencies.

    Raises ValueError without a benchmark, and where one's requests do not fit its memory.
    """
    if not benches:
        raise ValueError("a fit needs at least one benchmark of the server.")
    names = sorted({bench.draft for bench in benches})
    seen = {name: _seen_engine([b for b in benches if b.draft == name], engine) for name in names}
    engines = {name: found or engine for name, found in seen.items()}
    target, drafts = _priors(benches)
    steps = StepCostFit(
        target=target.guess,
        drafts={name: prior.guess for name, prior in drafts.items()},
        hosts={name: prior.host_s for name, prior in drafts.items()},
        intervals={},
        residuals=(),
    )
    for index in range(NUM_PASSES):
        fitted = ServerFit(steps=steps, engines=engines)
        if index == 1:  # the costs are about right
            engines |= {name: _likelier_engine(fitted, benches, name, seed) for name in names if seen[name] is None}
            fitted = ServerFit(steps=steps, engines=engines)
        done = run_tasks(_measurement, [(fitted, bench, seed) for bench in benches], workers or Workers())
        measurements = [measurement for _, measurement in sorted(done, key=lambda pair: pair[0])]
        steps = fit_step_costs(measurements, target, drafts)
    return ServerFit(steps=steps, engines=engines)


def _measurement(server: ServerFit, bench: ServerBench, seed: int) -> Measurement:
    """What the simulated forwards should have taken: as much more as the benchmark took more, in duration and TPOT."""
    run = server.simulate(bench, seed=seed)
    costs = server.steps.step_costs(bench.draft)
    draws = bool(len(run.draft))
    forwards = Measurement(
        seconds=1.0, target=run.target, draft=run.draft if draws else None, draft_name=bench.draft if draws else ""
    )
    ratio = math.sqrt(bench.duration_s / run.duration_s * bench.mean_tpot_s / run.mean_tpot_s)
    return replace(forwards, seconds=total_s(forwards, costs) * ratio)


def _priors(benches: Sequence[ServerBench]) -> tuple[Prior, dict[str, Prior]]:
    """From the quietest benchmarks, where a step is K forwards of the draft and one of the target, near their floors."""
    steps = {
        name: [(b.draft_length, b.mean_tpot_s * b.mean_acceptance_length) for b in _quietest(benches, name)]
        for name in sorted({bench.draft for bench in benches})
    }
    plain = [seconds for rows in steps.values() for length, seconds in rows if not length]
    floors = plain or [_intercept(rows) for rows in steps.values()]
    target = target_prior(float(np.mean(floors)))
    drafts = {}
    for name, rows in steps.items():
        slopes = [(seconds - target.guess.floor_s) / length for length, seconds in rows if length]
        if slopes:
            floor_s = max(float(np.mean(slopes)), 0.002 * target.guess.floor_s)
            drafts[name] = draft_prior(floor_s, target.guess)
    return target, drafts


def _quietest(benches: Sequence[ServerBench], name: str) -> list[ServerBench]:
    """Of this draft, the benchmarks with the fewest requests at once."""
    own = [bench for bench in benches if bench.draft == name]
    least = min(bench.max_concurrency for bench in own)
    return [bench for bench in own if bench.max_concurrency == least]


def _intercept(rows: Sequence[tuple[int, float]]) -> float:
    """Seconds of a step at length 0; from one length alone, nine tenths of its step."""
    if len({length for length, _ in rows}) < 2:
        return 0.9 * rows[0][1]
    lengths, seconds = np.transpose(rows)
    _, at_zero = np.polyfit(lengths, seconds, 1)
    return max(float(at_zero), 0.5 * float(seconds.min()))


def _seen_engine(benches: Sequence[ServerBench], engine: Server) -> Server | None:
    """Whether this server plans a step ahead, by the steps that a request waits that does not come alone; None: unknown."""
    alone = {b.draft_length: _ttft_s(b) for b in benches if b.max_concurrency == 1}
    waits = [
        (_ttft_s(bench) - alone[bench.draft_length]) / (bench.mean_tpot_s * bench.mean_acceptance_length)
        for bench in benches
        if 1 < bench.max_concurrency <= MAX_QUIET and bench.draft_length in alone
    ]
    return replace(engine, schedules_ahead=float(np.mean(waits)) > AHEAD_STEPS) if waits else None


def _likelier_engine(server: ServerFit, benches: Sequence[ServerBench], name: str, seed: int) -> Server:
    """The same, by which of the two gives the measured TTFT."""

    def error(engine: Server) -> float:
        tried = replace(server, engines={**server.engines, name: engine})
        own = [bench for bench in benches if bench.draft == name]
        return sum(abs(math.log(tried.simulate(b, seed=seed).median_ttft_s / b.median_ttft_s)) for b in own)

    engine = server.engines[name]
    return min((replace(engine, schedules_ahead=ahead) for ahead in (False, True)), key=error)


def _ttft_s(bench: ServerBench) -> float:
    return bench.median_ttft_s if bench.mean_ttft_s is None else bench.mean_ttft_s

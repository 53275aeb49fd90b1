"""A check against a measured server: fit its step costs to a few of its benchmarks, predict the others, and tell the errors.

The recipe of `specbranch plan --check FILE`. Without speculation every benchmark is fitted; with it, those of a few draft
lengths at a few concurrencies (`fit_k`, `fit_concurrency`). Memory and acceptance by position are taken as the file has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from analysis.explore.work.scale_out import Workers, run_tasks
from analysis.plan.measured.benches import VLLM
from analysis.plan.measured.errors import Cell, CheckErrors, errors_of
from analysis.plan.measured.fit import ServerFit, fit_server
from sim.serving.settings import Server
from traces.files import write_frame, write_text
from traces.folder.writer import check_new_folder
from traces.importers.base import ForeignTraceError
from traces.importers.server_bench import ServerBench, read_server_bench

FIT_K = (1, 5)
FIT_CONCURRENCY = (1, 16, 128)
NUM_REQUESTS = 1000  # simulated for each benchmark, by replications of a small one
MAX_REPLICATIONS = 4


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found. cells: one a benchmark, in the order of the file. server: what was fitted."""

    errors: CheckErrors
    cells: tuple[Cell, ...]
    server: ServerFit


def check_server_table(
    path: str | Path,
    output_dir: str | Path,
    fit_k: Sequence[int] = FIT_K,
    fit_concurrency: Sequence[int] = FIT_CONCURRENCY,
    *,
    fit_plain_concurrency: Sequence[int] | None = None,
    engine: Server = VLLM,
    seed: int = 0,
    workers: Workers | None = None,
) -> CheckResult:
    """Check the simulator on a table of server benchmarks; writes `cells.parquet`, `summary.json` and the fitted step
    costs (`costs-DRAFT.json`) to output_dir.

    fit_k, fit_concurrency: which benchmarks of each draft are fitted; cut to what it has, and where that leaves fewer than
    two, its smallest and largest. fit_plain_concurrency: of those without speculation; None fits them all.
    The same arguments give the same numbers for any workers. Raises ForeignTraceError for a table that cannot be read, and
    ValueError where output_dir holds something, or a request does not fit the memory that the table gives.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir)
    workers = workers or Workers()
    benches = read_server_bench(path)
    fitted = _fitted(benches, fit_k, fit_concurrency, fit_plain_concurrency)
    server = fit_server([benches[index] for index in sorted(fitted)], engine=engine, seed=seed, workers=workers)
    if missing := sorted({bench.draft for bench in benches} - server.engines.keys()):
        raise ForeignTraceError(f"{path}: no benchmark of the draft {missing[0]!r} is among the fitted ones.")
    tasks = [(server, bench, index in fitted, seed) for index, bench in enumerate(benches)]
    cells = tuple(cell for _, cell in sorted(run_tasks(_predict, tasks, workers), key=lambda done: done[0]))
    result = CheckResult(errors=errors_of(cells), cells=cells, server=server)
    _write(result, output_dir)
    return result


def _write(result: CheckResult, output_dir: Path) -> None:
    """Cells as a table, errors and laws as JSON, and each draft's step costs as `specbranch plan --costs` reads them."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_frame(output_dir / "cells.parquet", pd.DataFrame([cell.row() for cell in result.cells]))
    steps = result.server.steps
    summary = {
        "check": asdict(result.errors),
        "target": asdict(steps.target),
        "drafts": {name: asdict(law) | {"host_s": steps.hosts[name]} for name, law in steps.drafts.items()},
        "intervals_95": dict(steps.intervals),
        "schedules_ahead": {name: engine.schedules_ahead for name, engine in result.server.engines.items()},
    }
    for name in steps.drafts:
        steps.step_costs(name).write(output_dir / f"costs-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.json")
    write_text(output_dir / "summary.json", json.dumps(summary, indent=2) + "\n")


def _fitted(
    benches: Sequence[ServerBench],
    fit_k: Sequence[int],
    fit_concurrency: Sequence[int],
    fit_plain_concurrency: Sequence[int] | None,
) -> set[int]:
    """Places of the benchmarks that are fitted."""
    places = set()
    for draft in {bench.draft for bench in benches}:
        own = {index: bench for index, bench in enumerate(benches) if bench.draft == draft}
        speculates = [bench for bench in own.values() if bench.draft_length]
        plain = [bench for bench in own.values() if not bench.draft_length]
        lengths = _cut(fit_k, [bench.draft_length for bench in speculates])
        loads = _cut(fit_concurrency, [bench.max_concurrency for bench in speculates])
        plain_loads = [bench.max_concurrency for bench in plain]
        if fit_plain_concurrency is not None:
            plain_loads = _cut(fit_plain_concurrency, plain_loads)
        for index, bench in own.items():
            if bench.draft_length:
                is_fitted = bench.draft_length in lengths and bench.max_concurrency in loads
            else:
                is_fitted = bench.max_concurrency in plain_loads
            if is_fitted:
                places.add(index)
    return places


def _cut(wanted: Sequence[int], there: Sequence[int]) -> list[int]:
    """What is wanted and there; fewer than two leave too much open, so that then the ends of what is there are taken."""
    kept = sorted(set(wanted) & set(there))
    if len(kept) >= min(2, len(set(there)), len(set(wanted))):
        return kept
    return [min(there), max(there)]


def _predict(server: ServerFit, bench: ServerBench, is_fitted: bool, seed: int) -> Cell:
    """Means over replications; a small benchmark, whose luck counts for more, has more of them."""
    num = min(max(round(NUM_REQUESTS / bench.num_requests), 1), MAX_REPLICATIONS)
    runs = [server.simulate(bench, seed=seed + replication) for replication in range(num)]
    return Cell(
        dataset=bench.dataset,
        method=bench.method,
        draft=bench.draft,
        draft_length=bench.draft_length,
        max_concurrency=bench.max_concurrency,
        kv_tokens=bench.kv_tokens,
        is_fitted=is_fitted,
        measured_output_tok_s=bench.output_tokens_per_s,
        measured_mean_tpot_ms=bench.mean_tpot_s * 1e3,
        measured_median_ttft_ms=bench.median_ttft_s * 1e3,
        predicted_output_tok_s=fmean(run.output_tokens_per_s for run in runs),
        predicted_mean_tpot_ms=fmean(run.mean_tpot_s for run in runs) * 1e3,
        predicted_median_ttft_ms=fmean(run.median_ttft_s for run in runs) * 1e3,
        num_preemptions=fmean(run.num_preemptions for run in runs),
        mean_running=fmean(run.mean_running for run in runs),
    )

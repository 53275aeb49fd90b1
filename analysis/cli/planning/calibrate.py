"""`specbranch calibrate`: fit the latencies of a recorded run, or the step costs of a server to its benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import Seed, console


def calibrate(
    run: Annotated[Path | None, typer.Option(help="Read this run folder of `specbranch record`.")] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a run, read this folder of `specbranch import`: benchmarks of a server, three at least."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the calibration to this new file, by default RUN/calibration.json; with --bench to this new "
            "folder, by default BENCH/calibrated."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit latencies to a recorded run, or step costs to a server's benchmarks, and print how good the fit is."""
    if (run is None) == (bench is None):
        raise ValueError(
            "give --run FOLDER of `specbranch record`, or --bench FOLDER of `specbranch import`; one of them."
        )
    if bench is not None:
        _calibrate_benches(bench, output or bench / "calibrated")
        return
    assert run is not None
    from traces.fits.batched_ops import fit_batches
    from traces.fits.calibration import calibrate as fit
    from traces.folder.run import read_run

    path = output or run / "calibration.json"
    costs = path.with_name("step_costs.json")
    _refuse_existing(path)
    recorded = read_run(run)
    batched = fit_batches(recorded)
    if batched is not None:
        _refuse_existing(costs)
    fitted = fit(recorded, seed=seed)
    fitted.save(path)
    console.print(fitted.report(), highlight=False, markup=False)
    console.print(f"calibration: {path}")
    if batched is not None:
        batched.write(costs)
        console.print(batched.report(), highlight=False, markup=False)
        console.print(
            f"next: specbranch plan --costs {costs} --kv-tokens N ...", highlight=False, markup=False, soft_wrap=True
        )


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already; name another place with --output.")


def _calibrate_benches(folder: Path, output_dir: Path) -> None:
    """The verdict, the table with its intervals, what to run next, and the files for engines and for a replay."""
    from rich.table import Table

    from analysis.plan.dialects.files import write_engines
    from analysis.plan.inputs import new_folder
    from analysis.plan.measured.bench_calibration import calibrate_benches, write_bench_calibration
    from analysis.plan.measured.replay import plan_replay, write_replay
    from analysis.plan.verdict import length_sentence

    result = calibrate_benches(folder)
    served, steps = result.served, result.server.steps
    new_folder(output_dir)
    write_bench_calibration(result, output_dir)
    written = write_engines(served, output_dir)
    if written:
        write_replay(plan_replay(served, kv_tokens=result.kv_tokens, engine=result.engine), output_dir)
    console.print(length_sentence(served.table), style="bold", highlight=False)
    console.print(
        f"Step costs of {result.num_benches} benchmarks, fitted within {steps.mean_abs_error:.1%} in the mean.",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("running", "K", "gain at the first", "at the last"):
        table.add_column(name, justify="right")
    for first, last, length in served.bands():
        table.add_row(f"{first} to {last}", str(length), served.told(first, length), served.told(last, length))
    console.print(table)
    if result.next_run is not None:
        console.print(str(result.next_run), highlight=False)
    console.print(f"{', '.join([*written, 'step_costs.json'])}: {output_dir}", highlight=False, soft_wrap=True)
    if written:
        console.print(
            f"next: the lines of {output_dir / 'replay.sh'}, to see the times checked", highlight=False, soft_wrap=True
        )

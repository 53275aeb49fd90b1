"""`specbranch calibrate`: fit the latencies of a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.options import RunDir, Seed, console


def calibrate(
    run: RunDir,
    output: Annotated[
        Path | None, typer.Option(help="Write the calibration to this new file; by default RUN/calibration.json.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit latencies to a recorded run and print how good the fit is."""
    from traces.fits.calibration import calibrate as fit
    from traces.folder.run import read_run

    path = output or run / "calibration.json"
    if path.exists():
        raise ValueError(f"{path} exists already; name another place with --output.")
    fitted = fit(read_run(run), seed=seed)
    fitted.save(path)
    console.print(fitted.report(), highlight=False, markup=False)
    console.print(f"calibration: {path}")

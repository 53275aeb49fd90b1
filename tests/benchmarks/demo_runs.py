"""Runs the demo many times and reports how its errors are distributed; for a quiet machine, since every run is counted.

python tests/benchmarks/demo_runs.py --runs 10 --quick --output demo_quick.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.check.validation import PolicyCheck

NUMBERS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "mean speed-up error": lambda found: found["mean_abs_speedup_error"],
    "worst speed-up error": lambda found: found["worst_abs_speedup_error"],
    "mean error, tokens/s": lambda found: found["mean_abs_relative_error"],
    "same policy, measured twice": lambda found: found["same_policy_difference"],
    "widest interval": lambda found: found["widest_interval"],
    "slowest over median": lambda found: found["drift_range"][0],
    "fastest over median": lambda found: found["drift_range"][1],
}


def run_once(folder: Path, is_quick: bool, seed: int) -> dict[str, Any]:
    """One demo in a process of its own; what its summary.json holds. Exit code 3 (not identical) counts as well."""
    command = [sys.executable, "-m", "analysis.cli.main", "demo", "--output-dir", str(folder), "--seed", str(seed)]
    done = subprocess.run([*command, *(["--quick"] if is_quick else [])], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"the demo ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def report(summaries: Sequence[dict[str, Any]]) -> str:
    """The runs in order, then quantiles over them."""
    found = [summary["validation"] for summary in summaries]
    lines = [f"{len(found)} runs, {sum(each['is_claim'] for each in found)} of which support a claim"]
    for name, number_of in NUMBERS.items():
        values = [value for each in found if (value := number_of(each)) is not None]
        if values:
            told = " ".join(f"{value:.3f}" for value in values)
            lines.append(
                f"{name:<28} median {np.median(values):.3f}  9 of 10 {np.quantile(values, 0.9):.3f}  worst {max(values):.3f}"
                f"   ({told})"
            )
    cells = [check for each in found for check in each["policies"] if check["speedup_error"] is not None]
    if cells:
        covered = [PolicyCheck(**check).is_covered for check in cells]
        lines.append(f"agree within 95% intervals     {np.mean([bool(each) for each in covered]):.1%} of {len(cells)}")
    seconds = [summary["wall_s"] for summary in summaries]
    lines.append(f"seconds                        median {np.median(seconds):.0f}, longest {max(seconds):.0f}")
    lines += [f"no claim in run {index}: {each['note']}" for index, each in enumerate(found) if not each["is_claim"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further one takes the next")
    parser.add_argument("--output", type=Path, help="write all summaries to this JSON file")
    arguments = parser.parse_args()
    summaries = []
    for index in range(arguments.runs):
        parent = Path(tempfile.mkdtemp())
        try:
            summaries.append(run_once(parent / "demo", arguments.quick, arguments.seed + index))
        finally:
            shutil.rmtree(parent, ignore_errors=True)
        print(
            f"run {index}: mean speed-up error {summaries[-1]['validation']['mean_abs_speedup_error']:.1%}", flush=True
        )
        if arguments.output:
            arguments.output.write_text(json.dumps(summaries, indent=1), encoding="utf-8")
    print(report(summaries))


if __name__ == "__main__":
    main()

"""`specbranch simulate`: replay a run under other policies."""

from __future__ import annotations

from analysis.cli.options import CalibrationFile, OutputDir, Policies, RunDir, Seed, console


def simulate(
    run: RunDir, output_dir: OutputDir, policy: Policies = None, calibration: CalibrationFile = None, seed: Seed = 0
) -> None:
    """Replay a recorded run under other policies in simulated time; writes a run folder for each."""
    from analysis.cli.tables import print_doubt, print_lines, print_speeds
    from analysis.explore.simulation import simulate_run
    from analysis.tuning.auto import resolution_lines, resolve_on_run

    if not policy:
        raise ValueError("no policy to simulate; give --policy, such as --policy pearl:draft_length=6.")
    resolved = resolve_on_run(policy, run, latency=calibration)
    simulated = simulate_run(run, output_dir, list(resolved.values()), latency=calibration, seed=seed)
    print_lines(console, resolution_lines(resolved))
    print_speeds(console, "Simulated", simulated.speeds)
    print_doubt(console, simulated.doubt)
    console.print(f"run folders: {output_dir}")

"""`specbranch simulate`: replay a run under other policies."""

from __future__ import annotations

from analysis.cli.options import CalibrationFile, OutputDir, Policies, RunDir, Seed, console


def simulate(
    run: RunDir, output_dir: OutputDir, policy: Policies = None, calibration: CalibrationFile = None, seed: Seed = 0
) -> None:
    """Replay a recorded run under other policies in simulated time; writes a run folder for each."""
    from analysis.cli.tables import print_doubt, print_speeds
    from analysis.explore.simulation import simulate_run
    from sim.decoding.policies.catalog import parse_policies

    if not policy:
        raise ValueError("no policy to simulate; give --policy, such as --policy pearl:draft_length=6.")
    simulated = simulate_run(run, output_dir, parse_policies(policy), latency=calibration, seed=seed)
    print_speeds(console, "Simulated", simulated.speeds)
    print_doubt(console, simulated.doubt)
    console.print(f"run folders: {output_dir}")

"""Recording runs: prompts, schedule, contention, sweeps, synthetic acceptance."""

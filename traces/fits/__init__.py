"""Models fitted to recorded runs: latencies, signals, acceptance."""

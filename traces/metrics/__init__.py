"""Numbers of a run: counts of rounds, speeds with intervals."""

"""How an exploration is worked off: policies evaluated in tasks, over workers, kept as they come in."""

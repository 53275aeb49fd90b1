"""Many policies at once: rounds in lockstep as arrays, held equal to the engine."""

"""Measured servers: their benchmarks simulated, their costs fitted, and the predictions checked."""

"""The papers' operating points, simulated."""

"""Models of acceptance fitted to traces, and tests of which ones a trace rejects."""

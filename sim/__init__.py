"""What would happen: policies, the step machine, latency and acceptance models, replay, the SimPy engine."""

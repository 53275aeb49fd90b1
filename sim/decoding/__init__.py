"""The method: step machine, worlds, policies, replay and verification; no SimPy, no latency, no clock."""

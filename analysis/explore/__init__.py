"""Many policies on the simulator."""

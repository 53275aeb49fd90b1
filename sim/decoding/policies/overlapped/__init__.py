"""Policies that draft while the target verifies."""

"""Policies that draft while the target waits."""

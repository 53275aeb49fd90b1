"""Figures of runs, explorations and closed forms."""

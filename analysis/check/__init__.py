"""Predicted against measured, replayed against executed."""

"""Capacity: what a server with speculation does under load, and the checks of that against measured servers."""

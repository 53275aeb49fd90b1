"""Workloads drawn at random: laws of when requests arrive and how long they are, and requests drawn from them."""

"""Policies: which outcomes to hedge, how far, and how much of the result to submit. One policy a file."""

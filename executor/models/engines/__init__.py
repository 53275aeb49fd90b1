"""Engines: one causal language model and its key-value cache, with rollback by length and branches over one prefix."""

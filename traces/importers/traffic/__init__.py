"""Readers of traffic that other programs recorded: when requests arrived and how long they were, one file a format."""

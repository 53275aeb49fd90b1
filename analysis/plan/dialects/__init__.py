"""A table of draft lengths in the words of serving engines: written for them, and read back."""

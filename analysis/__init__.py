"""What to do about it: explore, validate, plot, and the command line."""

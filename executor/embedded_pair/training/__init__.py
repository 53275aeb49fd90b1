"""Training the embedded pair."""

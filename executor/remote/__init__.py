"""A target in another process: messages, and the two ways they travel."""

"""What does happen: real models, the two-process pipeline, the recorder."""

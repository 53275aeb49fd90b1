"""Commands that answer from data alone, without a model."""

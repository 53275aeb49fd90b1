"""Commands that need no model."""

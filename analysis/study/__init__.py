"""What to ask: studies, their questions, and the candidates of each method."""

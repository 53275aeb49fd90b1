"""Sources: where a model comes from. One class each for a Hugging Face model, for random weights and for a lookup."""

"""State, step and loop shared by rater and language model."""

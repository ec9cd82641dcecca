"""QuRating in JAX: choose the pre-training data that makes language models better."""

__version__ = "0.1.0"

"""Measuring the training of language models."""

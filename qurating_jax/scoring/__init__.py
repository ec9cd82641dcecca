"""Texts and token windows in, ratings and likelihoods out."""

"""From orders of documents to thresholds: which documents a budget takes."""

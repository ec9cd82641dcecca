"""Files, manifests, checkpoints, logs, progress."""

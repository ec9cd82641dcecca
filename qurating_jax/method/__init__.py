"""What it computes: pure functions on NumPy arrays."""

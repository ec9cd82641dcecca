"""What came of runs, side by side."""

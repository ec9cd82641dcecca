"""What a selection did, in numbers and tables."""

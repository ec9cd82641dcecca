"""Who compares texts: criteria, pair designs, judges."""

"""DSIR: hashed n-grams of an input, weighed against targets."""

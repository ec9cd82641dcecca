"""Documents onto two sides, training and held out."""

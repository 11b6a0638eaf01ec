"""Training data: samples, sources, and the order they are drawn in."""

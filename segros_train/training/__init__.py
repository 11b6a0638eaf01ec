"""The training loop and its parts, one for every method and backbone."""

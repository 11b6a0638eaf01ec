"""Methods: each decides what to show, what to hide and where to take the loss."""

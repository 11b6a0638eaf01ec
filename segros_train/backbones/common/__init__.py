"""What families of backbones do alike."""

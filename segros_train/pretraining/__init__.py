"""How the shipped tiny backbones came to be."""

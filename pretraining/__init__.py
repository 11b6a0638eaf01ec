"""How the shipped tiny backbones came to be: one command per family, outside the library."""

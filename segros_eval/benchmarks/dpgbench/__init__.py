"""DPG-Bench: long prompts, by questions about the image."""

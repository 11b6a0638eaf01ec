"""The embedded world: scenes, words about them, prompts and questions."""

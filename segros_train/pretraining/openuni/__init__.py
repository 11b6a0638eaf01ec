"""Pretraining of the tiny OpenUni."""

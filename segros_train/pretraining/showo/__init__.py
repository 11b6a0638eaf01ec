"""Pretraining of the tiny Show-o."""

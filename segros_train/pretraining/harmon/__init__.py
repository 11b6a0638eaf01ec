"""Pretraining of the tiny Harmon."""

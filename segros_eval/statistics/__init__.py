"""Uncertainty of benchmark numbers."""

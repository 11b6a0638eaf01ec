"""Benchmarks: what each asks of a backbone, and how it scores the responses."""

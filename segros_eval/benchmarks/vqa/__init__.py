"""Benchmarks of questions about images: MME, POPE, GQA, MMMU, SEED-Bench."""

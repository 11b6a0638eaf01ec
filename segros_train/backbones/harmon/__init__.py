"""Harmon: a language model between a masked autoregressive encoder and decoder with a diffusion head."""

"""Harmon: a language model between a masked autoregressive encoder and decoder with a diffusion head.

This package imports no torch until a model is built.
"""

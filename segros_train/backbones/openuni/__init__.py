"""OpenUni: a frozen multimodal language model whose learned queries condition a diffusion transformer.

This package imports no torch until a model is built.
"""

"""Keyed randomness: a draw depends on the words of its key alone, never on what was drawn before it.

A restart therefore replays nothing, and no draw moves when a batch, a worker or another draw does.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["keyed_generator", "keyed_seed"]


def keyed_seed(*key: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on the key alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device` that depends on the key alone."""
    return torch.Generator(device=device).manual_seed(keyed_seed(*key))

"""Keyed randomness: a draw depends on the words of its key alone, never on what was drawn before it.

A restart therefore replays nothing, and no draw moves when a batch, a worker, a rank or another draw does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["Draws", "keyed_generator", "keyed_seed"]


def keyed_seed(*key: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on the key alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str) -> Generator:
    """Return a generator on the CPU that depends on the key alone."""
    return torch.Generator().manual_seed(keyed_seed(*key))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one micro-batch of B items, drawn on the CPU, so that every device has the same.

    Each item has generators of its own: what it draws depends neither on the batch nor on the rank that it is in.

    Attributes:
        seed: Of the run.
        micro_step: Key of what the whole micro-batch shares.
        places: Key of each item: its place in the endless order of the data set, which tells step and item.
    """

    seed: int
    micro_step: int
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def of_batch(self, purpose: str) -> Generator:
        """Return the generator of what the whole micro-batch shares."""
        return keyed_generator(self.seed, purpose, "micro-step", self.micro_step)

    def of_items(self, purpose: str, draw: Callable[[Generator], Tensor]) -> Tensor:
        """Return what each item draws, [B, ...].

        Args:
            purpose: What is drawn; another purpose has other generators.
            draw: Draw an item's numbers from its generator.
        """
        return torch.stack([draw(keyed_generator(self.seed, purpose, place)) for place in self.places])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Return [B, *shape] float32, uniform in [0, 1)."""
        return self.of_items(purpose, lambda rng: torch.rand(shape, generator=rng))

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Return [B, *shape] float32, standard normal."""
        return self.of_items(purpose, lambda rng: torch.randn(shape, generator=rng))

    def below(self, purpose: str, high: int) -> list[int]:
        """Return B numbers in [0, high)."""
        drawn: list[int] = self.of_items(purpose, lambda rng: torch.randint(high, (), generator=rng)).tolist()
        return drawn

"""The contract of a backbone: it realises any `Supervision` under its own native loss.

A backbone never knows which method made a supervision, and a method never knows which backbone
realises it. A new family is a package with a `Backbone` subclass
and a `load` function; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.draws import Draws
    from segros_train.types import (
        BackboneCard,
        Checkpointing,
        Embeddings,
        GenerationBatch,
        GenerationSettings,
        Grid,
        InstructionBatch,
        Supervision,
    )

__all__ = ["Backbone", "Encoded", "ImageTransform", "ParameterGroups", "Conditioning"]

ImageTransform = Callable[["Image", Generator], Tensor]
"""Turn an RGB image into [3, height, width] float32 in [-1, 1]; draws (random crops) come from the generator."""


@dataclass(frozen=True)
class Conditioning:
    """Choices that change the function a backbone computes; recorded in every checkpoint.

    Attributes:
        attention: `"paper"`: the mask of section 8.2; `"native"`: the backbone's own. Sampling follows it.
        hint_slot: Where hints stand; None leaves it to the backbone.
        text_dropout: Share of captions replaced by the empty condition in training.
    """

    attention: Literal["paper", "native"] = "native"
    hint_slot: Literal["prefix", "user"] | None = None
    text_dropout: float = 0.1


@dataclass(frozen=True)
class ParameterGroups:
    """Trainable parameters by weight decay; every trainable parameter stands in exactly one group."""

    decayed: tuple[nn.Parameter, ...]
    not_decayed: tuple[nn.Parameter, ...]


class Encoded:
    """What a backbone makes of a batch before a method decides: each part when it is first asked for, and once.

    Attributes:
        batch: Images with captions.
        frozen: How frozen parts make each part [B, ...] of images [b, 3, height, width]: what a latent cache keeps.
            Of items that the batch brings such latents for, they are read in place of being made.
        derived: How the other parts are made of these, with the gradient that they are asked for with.
    """

    def __init__(
        self,
        batch: GenerationBatch,
        *,
        frozen: Mapping[str, Callable[[Tensor], Tensor]],
        derived: Mapping[str, Callable[[Encoded], Any]],
    ) -> None:
        self.batch, self.frozen, self.derived = batch, frozen, derived
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._of_images(name) if name in self.frozen else self.derived[name](self)
        return self._made[name]

    @torch.no_grad()
    def _of_images(self, name: str) -> Tensor:
        images, kept = self.batch.images, self.batch.latents
        new = [place for place, latents in enumerate(kept) if latents is None]
        if len(new) == len(kept):
            return self.frozen[name](images)
        made = iter(self.frozen[name](images[new]) if new else ())
        rows = [next(made) if latents is None else latents[name].to(images.device) for latents in kept]
        return torch.stack(rows)


class Backbone(nn.Module, ABC):
    """A unified multimodal model behind the project's contract.

    Frozen parts have `requires_grad` False and stay in eval mode whatever `train()` is told.
    `forward` is not used: the loop calls `t2i_loss` and `i2t_loss`.
    """

    card: BackboneCard
    conditioning: Conditioning
    last_steps: int = 0
    """How many iterations of a draw to carry out, the last ones: what counting its memory needs; 0 for all."""

    @abstractmethod
    def encode(self, batch: GenerationBatch) -> Encoded:
        """Return what is made of a batch whatever a method decides, computing nothing before it is asked for.

        Valid for one micro-step: its parts belong to the weights of that moment.
        """

    @abstractmethod
    def embed(self, encoded: Encoded) -> Embeddings:
        """Return what methods see: caption rows of the embedding table and visual embeddings, without gradient.

        Called for methods that need embeddings alone.
        """

    @abstractmethod
    def grids(self, batch: GenerationBatch) -> tuple[Grid, Grid]:
        """Return rows and columns of the visual embeddings and of the latent cells, as `embed` does, computing none."""

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again; losses and gradients stay what they are.

        Raises:
            PrerequisiteError: If the backbone cannot.
        """
        if checkpointing != "none":
            raise PrerequisiteError(
                f"checkpointing={checkpointing} was asked for, {self.card.title} knows only none: leave it out."
            )

    def caption_tokens(self, caption: str) -> list[str]:
        """Return the text of each caption token, in the order of the valid places of `embed`'s text.

        Needed by `segros explain` alone.

        Raises:
            PrerequisiteError: If the backbone does not say.
        """
        raise PrerequisiteError(f"{self.card.title} does not name the tokens of a caption, so it cannot be explained.")

    @abstractmethod
    def masking_ratio(self, draws: Draws) -> Tensor | None:
        """Draw [B] shares of hidden cells from the native schedule; None where nothing is masked."""

    @abstractmethod
    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        """Return the native text-to-image loss, a scalar, taken where `supervision` says."""

    @abstractmethod
    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the answers' tokens, a scalar (Eq. 2)."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
    ) -> Iterator[Image]:
        """Yield one RGB image per prompt, in order.

        An image depends on (weights, prompt, seed, settings) alone, not on its batch.

        Args:
            prompts: Texts as the benchmark writes them; the backbone adds its own template.
            seeds: One seed per prompt.
            settings: Sampling settings.
        """

    @abstractmethod
    def answer(self, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Answer each question about its images by greedy decoding.

        Args:
            images: Per question, the images it is about.
            questions: Texts as the benchmark writes them.
            max_new_tokens: Largest length of an answer.
        """

    @abstractmethod
    def choice_logprobs(
        self, images: Sequence[Sequence[Image]], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return, per question, the log-probability of each choice's first token as the first answer token."""

    @abstractmethod
    def image_transform(self, purpose: Literal["generation", "understanding"]) -> ImageTransform:
        """Return the picklable preparation of images for a purpose (size, crop, normalisation)."""

    @abstractmethod
    def parameter_groups(self) -> ParameterGroups:
        """Return the trainable parameters, split by weight decay."""

    @abstractmethod
    def configure(self, conditioning: Conditioning) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""

    @abstractmethod
    def save_pretrained(self, directory: Path) -> None:
        """Write `config.json` (family, card, config, conditioning), weights and tokenizer files, atomically."""

    @abstractmethod
    def upstream_state(self) -> dict[str, Tensor]:
        """Return the weights under the upstream project's key names."""

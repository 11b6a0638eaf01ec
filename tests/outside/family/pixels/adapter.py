"""Pixels: the smallest unified model. It paints a coarse picture from a mean of words, and speaks from a mean of both.

Symbols as in `segros_train.types`: a latent cell is the mean colour of a square, a visual embedding its projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from segros_train.backbone import Backbone, Conditioning, Encoded, ImageTransform, ParameterGroups
from segros_train.backbones.common.images import CropToSquare, to_images
from segros_train.backbones.common.modes import inference
from segros_train.backbones.common.pretrained import write_checkpoint
from segros_train.draws import Draws, keyed_generator
from segros_train.types import (
    BackboneCard,
    Embeddings,
    GenerationBatch,
    GenerationSettings,
    Grid,
    InstructionBatch,
    Supervision,
)


class Pixels(Backbone):
    """Paint masked cells, given caption, hints and visible cells; answer a token at a time, given the one before."""

    def __init__(self, card: BackboneCard, tokenizer: Tokenizer, *, conditioning: Conditioning | None = None) -> None:
        super().__init__()
        self.card, self.tokenizer, self.conditioning = card, tokenizer, conditioning or Conditioning()
        width, vocab_size = card.config.width, card.config.vocab_size
        self.vision = nn.Sequential(nn.Conv2d(3, width, kernel_size=1)).requires_grad_(False)
        self.words = nn.Embedding(vocab_size, width)
        self.places = nn.Parameter(torch.randn(card.config.cells**2, width))
        self.paint = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
        self.speak = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, vocab_size))

    def train(self, mode: bool = True) -> Pixels:
        """Switch the trained parts; the frozen one stays in eval mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def encode(self, batch: GenerationBatch) -> Encoded:
        """Return `cells` [B, 3, rows, columns], and what is made of them: `visual` [B, N, D] and `captions` [B, D]."""
        return Encoded(
            batch,
            frozen={"cells": self._cells},
            derived={
                "visual": lambda encoded: self._visual(encoded["cells"]),
                "captions": lambda encoded: torch.stack([self._mean(caption) for caption in encoded.batch.captions]),
            },
        )

    @torch.no_grad()
    def embed(self, encoded: Encoded) -> Embeddings:
        """Return the rows of the captions' tokens, and the visual embeddings."""
        rows = [self.words(self._ids(caption)) for caption in encoded.batch.captions]
        text = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=text.device)
        valid = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        return Embeddings(text, valid, encoded["visual"], *self.grids(encoded.batch))

    def grids(self, batch: GenerationBatch) -> tuple[Grid, Grid]:
        """Return the grid of the cells, twice: each has one visual embedding."""
        grid = (self.card.config.cells, self.card.config.cells)
        return grid, grid

    def caption_tokens(self, caption: str) -> list[str]:
        """Return the text of each caption token."""
        tokens: list[str] = self.tokenizer.encode(caption).tokens
        return tokens

    def masking_ratio(self, draws: Draws) -> Tensor:
        """Draw [B] shares in [0.25, 1)."""
        return 0.25 + 0.75 * draws.uniform("masking ratio")

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        """Return the squared error of the painted colours, over the target's cells."""
        visual, colors = encoded["visual"], encoded["cells"].flatten(2).mT
        condition = torch.zeros_like(visual[:, 0])
        if supervision.caption:
            told = draws.uniform("caption") >= self.conditioning.text_dropout
            condition = condition + encoded["captions"] * told.to(visual.device)[:, None]
        if supervision.hints is not None:
            condition = condition + visual.take_along_dim(supervision.hints[..., None], dim=1).mean(dim=1)
        masked = supervision.masked
        if masked is None:
            masked = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        seen = visual.masked_fill(masked[..., None], 0).mean(dim=1)
        error = (self._painted(condition + seen) - colors).square().mean(dim=2)
        target = masked if supervision.target is None else supervision.target
        return error[target].mean()

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the answers' tokens."""
        pictures = self._visual(self._cells(batch.images)).mean(dim=1)
        found = [
            functional.cross_entropy(self._spoken(picture, turn.question, answer), answer, reduction="none")
            for picture, dialogue in zip(pictures, batch.dialogues, strict=True)
            for turn in dialogue
            for answer in [self._ids(turn.answer)]
        ]
        return torch.cat(found).mean()

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
    ) -> Iterator[Image.Image]:
        """Yield a picture of each prompt: the colours that are painted, with noise of the temperature."""
        side = self.card.config.cells
        for prompt, seed in zip(prompts, seeds, strict=True):
            with inference(self):
                colors = self._painted(self._mean(prompt)[None]).float().mT.reshape(1, 3, side, side)
            noise = torch.randn(colors.shape, generator=keyed_generator(seed, "pixels")).to(colors.device)
            noisy = colors + 0.1 * settings.temperature * noise
            yield to_images(functional.interpolate(noisy, size=[self.card.image_size_px] * 2))[0]

    def answer(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """Return the likeliest tokens, one after the other, until the first that is special."""
        return [self._answer(*asked, max_new_tokens) for asked in zip(self._pictures(images), questions, strict=True)]

    def choice_logprobs(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each choice's first token."""
        found = []
        for picture, question, of_one in zip(self._pictures(images), questions, choices, strict=True):
            with inference(self):
                logits = self._spoken(picture, question, self._ids("?"))[0]
            found.append([float(logits.float().log_softmax(0)[self._ids(choice)[0]]) for choice in of_one])
        return found

    def image_transform(self, purpose: Literal["generation", "understanding"]) -> ImageTransform:
        """Return the crop to a square, whatever the purpose."""
        return CropToSquare(self.card.image_size_px)

    def parameter_groups(self) -> ParameterGroups:
        """Return matrices as decayed, the rest as not."""
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        return ParameterGroups(
            tuple(weight for weight in trained if weight.dim() > 1),
            tuple(weight for weight in trained if weight.dim() <= 1),
        )

    def configure(self, conditioning: Conditioning) -> None:
        """Adopt the share of captions left out; there is no attention and no sequence for the rest to change."""
        self.conditioning = conditioning

    def save_pretrained(self, directory: Path) -> None:
        """Write a checkpoint."""
        write_checkpoint(
            directory,
            self.state_dict(),
            card=self.card,
            config=self.card.config,
            tokenizer=self.tokenizer,
            conditioning=self.conditioning,
            dtype=torch.float32,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return the weights: nobody else has names for them."""
        return dict(self.state_dict())

    def _cells(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images, self.card.config.cells)

    def _visual(self, cells: Tensor) -> Tensor:
        return self.vision(cells).flatten(2).mT

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text).ids, device=self.places.device)

    def _mean(self, text: str) -> Tensor:
        return self.words(self._ids(text)).mean(dim=0)

    def _painted(self, condition: Tensor) -> Tensor:
        """Return colours [B, M, 3] under conditions [B, D]."""
        return self.paint(condition[:, None] + self.places)

    def _pictures(self, images: Sequence[Sequence[Image.Image]]) -> Iterator[Tensor]:
        """Yield the mean embedding [D] of each question's images."""
        prepare, rng = self.image_transform("understanding"), keyed_generator("middle")
        for of_one in images:
            pixels = torch.stack([prepare(image, rng) for image in of_one]).to(self.places.device)
            with inference(self):
                yield self._visual(self._cells(pixels)).mean(dim=(0, 1))

    def _spoken(self, picture: Tensor, question: str, answer: Tensor) -> Tensor:
        """Return logits [L, vocabulary] of an answer's tokens, each given the one before."""
        before = functional.pad(self.words(answer[:-1]), (0, 0, 1, 0))
        return self.speak(picture + self._mean(question) + before)

    def _answer(self, picture: Tensor, question: str, max_new_tokens: int) -> str:
        ids: list[int] = []
        while len(ids) < max_new_tokens:
            with inference(self):
                given = torch.tensor([*ids, 0], device=picture.device)
                likeliest = int(self._spoken(picture, question, given)[-1].argmax())
            if self.tokenizer.id_to_token(likeliest) is None or self.tokenizer.decode([likeliest]) == "":
                break
            ids.append(likeliest)
        text: str = self.tokenizer.decode(ids)
        return text

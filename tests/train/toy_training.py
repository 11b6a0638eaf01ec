"""A backbone, a method and data small enough to train in milliseconds, and a process that trains them.

The backbone has what can go wrong in a restart: dropout, a frozen part, a buffer that training moves, draws
from the generators it is given, a parameter that never gets a gradient.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from segros_train.backbone import Backbone, Conditioning, Encoded, ParameterGroups
from segros_train.data.reading import DataError
from segros_train.data.samples import GenerationSample, InstructionSample
from segros_train.draws import Draws
from segros_train.training.loop import TrainOutcome, train
from segros_train.types import (
    BackboneCard,
    Embeddings,
    GenerationBatch,
    GenerationSettings,
    InstructionBatch,
    Recipe,
    Supervision,
    Turn,
)

SIDE_PX = 4
WIDTH = 8
RECIPE = Recipe(optimizer_steps=12, batch_size=3, accumulation=2, learning_rate=1e-2, warmup_steps=3, i2t_batch_size=2)


@dataclass(frozen=True)
class ToyImages:
    """Flat grey images; the items in `broken` cannot be read."""

    size: int = 20
    broken: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        return GenerationSample(f"image-{index}", self.image(index), f"grey {index}")

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise DataError(f"Cannot read the image of item 'image-{index}': torn.")
        return Image.new("RGB", (SIDE_PX, SIDE_PX), (index * 10 % 256,) * 3)


@dataclass(frozen=True)
class ToyDialogues(ToyImages):
    """A question about each image."""

    def __getitem__(self, index: int) -> InstructionSample:
        return InstructionSample(f"dialogue-{index}", self.image(index), (Turn("How grey?", str(index)),))


@dataclass(frozen=True)
class ToyMethod:
    """Mask random cells."""

    needs_embeddings = False

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        assert masking_ratio is not None
        cells = seen.latent_grid[0] * seen.latent_grid[1]
        return Supervision(caption=True, masked=draws.uniform("mask", cells) < masking_ratio[:, None])


def noisy_pixels(image: Image.Image, rng: torch.Generator) -> Tensor:
    """Return the image with a little noise: a transform that draws."""
    level = image.getpixel((0, 0))[0] / 127.5 - 1
    return torch.full((3, SIDE_PX, SIDE_PX), level) + 0.01 * torch.rand(3, SIDE_PX, SIDE_PX, generator=rng)


class ToyBackbone(Backbone):
    """Predict hidden pixels from visible ones."""

    card = BackboneCard(
        "toy", "toy", "Toy", None, "shapes", SIDE_PX, GenerationSettings(1), recipe="toy", data="shapes"
    )

    def __init__(self, *, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.conditioning = Conditioning()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Linear(3, WIDTH).requires_grad_(False)
            self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout), nn.Linear(WIDTH, 3))
            self.reader = nn.Linear(WIDTH, 1)
            self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(3))
        self.poison: str | None = None
        self.seen: list[tuple[str, ...]] = []

    def encode(self, batch: GenerationBatch) -> Encoded:
        return Encoded(batch, frozen={"pixels": lambda images: self.encoder(images.flatten(2).mT)}, derived={})

    def embed(self, encoded: Encoded) -> Embeddings:
        image = encoded["pixels"]
        valid = torch.ones(image.shape[0], 1, dtype=torch.bool, device=image.device)
        grid = (SIDE_PX, SIDE_PX)
        return Embeddings(image[:, :1], valid, image, grid, grid)

    def grids(self, batch: GenerationBatch) -> tuple[tuple[int, int], tuple[int, int]]:
        return (SIDE_PX, SIDE_PX), (SIDE_PX, SIDE_PX)

    def masking_ratio(self, draws: Draws) -> Tensor:
        return 0.5 + 0.5 * draws.uniform("masking ratio")

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        batch = encoded.batch
        assert supervision.masked is not None
        self.seen.append(batch.item_ids)
        pixels = batch.images.flatten(2).mT
        noise = 0.1 * draws.uniform("noise", *pixels.shape[1:])
        hidden = self.encoder((pixels + noise) * ~supervision.masked[..., None])
        self.mean.lerp_(pixels.mean((0, 1)), 0.1)
        loss = ((self.body(hidden) - pixels - self.mean) ** 2).mean()
        return loss * float("nan") if self.poison in batch.item_ids else loss

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        target = batch.images.new_tensor([float(dialogue[0].answer) for dialogue in batch.dialogues]) / 20
        return ((self.reader(self.encoder(batch.images.flatten(2).mT).mean(1))[:, 0] - target) ** 2).mean()

    def image_transform(self, purpose: str) -> object:
        return noisy_pixels

    def parameter_groups(self) -> ParameterGroups:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = tuple(parameter for parameter in trainable if parameter.dim() > 1)
        return ParameterGroups(matrices, tuple(parameter for parameter in trainable if parameter.dim() <= 1))

    def configure(self, conditioning: Conditioning) -> None:
        self.conditioning = conditioning

    def save_pretrained(self, directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps({"family": "toy"}))
        save_file(self.state_dict(), directory / "model.safetensors")

    def generate(self, prompts, *, seeds, settings):
        raise NotImplementedError

    def answer(self, images, questions, *, max_new_tokens):
        raise NotImplementedError

    def choice_logprobs(self, images, questions, choices):
        raise NotImplementedError

    def upstream_state(self) -> dict[str, Tensor]:
        raise NotImplementedError


class PlainBackbone(ToyBackbone):
    """A backbone whose loss is a mean over images that depends on no draw."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        pixels = encoded.batch.images.flatten(2).mT
        return ((self.body(self.encoder(pixels)) - pixels) ** 2).mean()


def train_toy(directory: Path, *, backbone: ToyBackbone | None = None, **changes: object) -> TrainOutcome:
    """Train a toy backbone; fields of the recipe and arguments of `train` can be changed by name."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Recipe.__dataclass_fields__}
    method = changes.pop("method", ToyMethod())
    arguments = {"generation": ToyImages(), "instruction": ToyDialogues(), "seed": 0} | changes
    return train(backbone or ToyBackbone(), method, recipe=replace(RECIPE, **fields), directory=directory, **arguments)


if __name__ == "__main__":
    # One of the processes of a distributed run, which stops and goes on.
    for stop in (5, None):
        train_toy(Path(sys.argv[1]), backbone=PlainBackbone(), stop_after=stop)
    torch.distributed.destroy_process_group()

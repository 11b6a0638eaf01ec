"""Scenes of the embedded world as every family's pretraining sees them: painted, encoded once, with what they show.

The caption of an ordinary scene tells of one to four cells in 36, and what it does not tell of is most of a plain loss:
a model that sees nothing else learns to ignore captions. So there are scenes whose captions tell of half of the cells:
spread ones, that repeat their objects, and crowds of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.data.shapes.captions import caption, spread_caption
from segros_train.data.shapes.world import (
    COLORS,
    GRID,
    OBJECT_NAMES,
    Scene,
    matching_crowd,
    render,
    sample_scene,
    spread_scene,
)
from segros_train.files import atomic_write
from segros_train.weight_files import RESTART, read_weight_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pretraining.fitting import Run
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.backbones.showo.adapter import Showo
    from segros_train.data.shapes.world import Tag

    TinyBackbone = Harmon | OpenUni | Showo

__all__ = [
    "MIXTURE",
    "NUM_CELLS",
    "NUM_KINDS",
    "SCENES_SEED",
    "EncodedScenes",
    "crowd",
    "encoded_scenes",
    "finish",
    "kinds",
    "latent_scale",
    "ordinary",
    "ordinary_scene",
    "pixels",
    "spread",
    "start_almost_linear",
    "tokenizer_file",
]

SCENES_SEED = 1000
"""Seed of the scenes, apart from those of fine-tuning."""
NUM_CELLS = GRID * GRID
NUM_KINDS = 1 + len(OBJECT_NAMES) * len(COLORS)
"""What a cell may show: nothing, or an object of a shape and a colour."""
MIXTURE: tuple[Tag, ...] = (
    *("single_object", "two_object", "counting", "colors", "position"),
    *("color_attr", "position", "color_attr", "two_object", "counting"),
)
"""Tags by turns: what is told of two things stands twice, and so do numbers."""
ENCODED_AT_ONCE = 64

Captioned = tuple[Scene, str]


def ordinary_scene(index: int) -> Scene:
    """Return the ordinary scene of an index; what it is about goes by turns."""
    return sample_scene(SCENES_SEED, index, tag=MIXTURE[index % len(MIXTURE)])


def ordinary(index: int) -> Captioned:
    """Return an ordinary scene with its caption."""
    scene = ordinary_scene(index)
    return scene, caption(scene)


def spread(index: int) -> Captioned:
    """Return the scene of an index with its objects spread over half of the cells, and its caption."""
    scene = ordinary_scene(index)
    return spread_scene(scene, SCENES_SEED), spread_caption(scene)


def crowd(index: int) -> Captioned:
    """Return a crowd of one shape and colour with its caption."""
    scene = matching_crowd(SCENES_SEED, index)
    return scene, caption(scene)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return rendered scenes, [scenes, 3, height, width] in [-1, 1]."""
    painted = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 127.5 - 1


def kinds(scene: Scene) -> Tensor:
    """Return what each cell of a scene shows, [M] uint8 in raster order: 0 for nothing, else a shape and a colour."""
    cells = torch.zeros(NUM_CELLS, dtype=torch.uint8)
    colors = tuple(COLORS)
    for thing in scene.objects:
        kind = 1 + OBJECT_NAMES.index(thing.shape) * len(colors) + colors.index(thing.color)
        cells[thing.row * GRID + thing.column] = kind
    return cells


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes as latents with captions.

    Attributes:
        latents: [S, ...] as the backbone's `encode_images` returns them, in 16 bits.
        kinds: [S, M] uint8, what each cell shows; see `kinds`. Above 0 are the cells that the caption tells of.
        captions: S captions.
    """

    latents: Tensor
    kinds: Tensor
    captions: tuple[str, ...]

    def rows(self, indices: Sequence[int]) -> EncodedScenes:
        """Return some scenes."""
        kept = torch.tensor(indices, dtype=torch.long)
        return EncodedScenes(self.latents[kept], self.kinds[kept], tuple(self.captions[index] for index in indices))

    def picked(self, count: int, rng: torch.Generator, tags: Sequence[Tag] = ()) -> EncodedScenes:
        """Return scenes drawn at random, about these tags alike where some are given."""
        indices = torch.randint(len(self.captions), (count,), generator=rng)
        if tags:
            turns = [[turn for turn, found in enumerate(MIXTURE) if found == tag] for tag in tags]
            chosen = torch.randint(len(tags), (count,), generator=rng).tolist()
            places = [turns[tag][index % len(turns[tag])] for tag, index in zip(chosen, indices.tolist(), strict=True)]
            indices = indices - indices % len(MIXTURE) + torch.tensor(places)
        return self.rows(indices.clamp(max=len(self.captions) - 1).tolist())

    @classmethod
    def joined(cls, parts: Sequence[EncodedScenes]) -> EncodedScenes:
        """Put scenes together."""
        return cls(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.kinds for part in parts]),
            tuple(text for part in parts for text in part.captions),
        )


@torch.no_grad()
def _encode(backbone: TinyBackbone, draw: Callable[[int], Captioned], num_scenes: int) -> EncodedScenes:
    parts = []
    for start in range(0, num_scenes, ENCODED_AT_ONCE):
        drawn = [draw(index) for index in range(start, min(start + ENCODED_AT_ONCE, num_scenes))]
        images = pixels([scene for scene, _ in drawn]).to(backbone.device)
        latents = backbone.model.encode_images(images).cpu()
        small = latents.half() if latents.is_floating_point() else latents.to(torch.int16)
        held = torch.stack([kinds(scene) for scene, _ in drawn])
        parts.append(EncodedScenes(small, held, tuple(text for _, text in drawn)))
    return EncodedScenes.joined(parts)


def encoded_scenes(
    backbone: TinyBackbone, run: Run, *sets: tuple[Callable[[int], Captioned], int]
) -> list[EncodedScenes]:
    """Return sets of scenes as latents, encoded and kept in the run's folder.

    Args:
        backbone: Its autoencoder, or tokenizer of images, is done.
        run: Where they are kept, and how many of them a run takes.
        sets: Of each, what gives the scene of an index with its caption, and the number of scenes.
    """
    path = run.folder / "scenes.pt"
    if not path.exists():
        encoded = [vars(_encode(backbone, draw, run.count(number))) for draw, number in sets]
        with atomic_write(path) as draft:
            torch.save(encoded, draft)
    return [EncodedScenes(**part) for part in read_weight_file(path, remedy=RESTART)]


@torch.no_grad()
def latent_scale(encode: Callable[[Tensor], Tensor], *, num_scenes: int = 256) -> float:
    """Return the factor that gives latents of ordinary scenes unit standard deviation."""
    return round(1 / encode(pixels([ordinary_scene(index) for index in range(num_scenes)])).std().item(), 4)


@torch.no_grad()
def start_almost_linear(model: nn.Module, seed: int, *, zeroed: tuple[str, ...] = ("conv2", "proj_out")) -> None:
    """Let an autoencoder start almost linear, in place, from which training takes minutes, not hours.

    Residual branches begin at zero, convolutions keep the scale of their input.

    Args:
        model: What is started.
        seed: Seed of its weights.
        zeroed: Ends of the names of the last layers of its branches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                if module.groups == 1:
                    nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if name.endswith(zeroed):
                nn.init.zeros_(module.weight)


def tokenizer_file(run: Run, build: Callable[[], Tokenizer]) -> Path:
    """Return the file of a run's tokenizer, built when absent."""
    path = run.folder / "tokenizer.json"
    if not path.exists():
        built = build()
        with atomic_write(path) as draft:
            built.save(str(draft))
    return path


def finish(backbone: TinyBackbone, run: Run) -> None:
    """Write the weights as they are shipped, in bf16, into the folder named after the backbone."""
    backbone.to("cpu").save_pretrained(run.folder / backbone.card.name, dtype=torch.bfloat16)

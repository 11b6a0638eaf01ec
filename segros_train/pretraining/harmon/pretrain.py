"""Pretrain a tiny Harmon on the embedded world, from random weights to a base that draws and answers.

A byte-level tokenizer comes first, then the autoencoder, frozen from then on, then the unified model, in parts that
the ordinary loop of `segros_train.training.loop` runs with method SFT on scenes that are encoded once. The caption of
an ordinary scene tells of one or two cells in 36: a run on such scenes alone, and with narrower first weights, ignored
every caption after 2,500 updates. So what captions tell of is first spread over half of the cells, and the loss is
taken where captions tell of something, before all cells count alike. The last part, in batches of 512, wants a GPU; see
`segros_train.pretraining.harmon.joint`.
"""

from __future__ import annotations

import importlib
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.data.shapes import captions
from segros_train.data.shapes.sets import Alternating, GenerationSet, InstructionSet, PretrainingSet, SpreadSet
from segros_train.data.shapes.world import TAGS
from segros_train.errors import PrerequisiteError
from segros_train.files import replace_file
from segros_train.methods.sft import SFT
from segros_train.pretraining.harmon.autoencoder import AutoencoderRecipe, latent_scale, pretrain_autoencoder
from segros_train.pretraining.harmon.joint import JOINT, JointRecipe, pretrain_jointly
from segros_train.pretraining.tiny import build_tokenizer, pixels
from segros_train.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segros_train.backbone import Backbone
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.data.samples import GenerationSource, InstructionSource
    from segros_train.data.shapes.world import Scene, Tag
    from segros_train.types import BackboneCard

__all__ = [
    "NUM_SCENES",
    "SCENES_SEED",
    "PARTS",
    "Part",
    "begin",
    "encode_scenes",
    "prepare",
    "sources",
]

logger = logging.getLogger(__name__)

SCENES_SEED = 1000
"""Seed of the scenes, apart from those of fine-tuning."""
NUM_SCENES = 40_000
SPREAD_SHARE = 3
"""For how many ordinary scenes there is one that is spread, of each kind."""
ENCODED_AT_ONCE = 64


def _corpus() -> list[str]:
    """Return what the tokenizer shall know: the world's language, the prompt template, the instructions."""
    template = ["user\n", "assistant\n", "Generate an image: ", "Generate an image."]
    return captions.corpus(4000) + (template + list(INSTRUCTIONS)) * 100


@dataclass(frozen=True)
class Part:
    """One part of the training of the unified model.

    Attributes:
        name: Its folder.
        method: What decides the supervision.
        recipe: How to train.
        tags: Tags of the scenes, by turns; as the world draws them when empty.
        spread_every: Every how many samples one is a spread scene, the others being ordinary ones; None for none.
    """

    name: str
    method: SFT
    recipe: Recipe
    tags: tuple[Tag, ...] = ()
    spread_every: int | None = 1


READING = Recipe(
    optimizer_steps=400,
    batch_size=64,
    learning_rate=2e-3,
    warmup_steps=40,
    schedule_steps=100_000,
    weight_decay=0.02,
    i2t_weight=0.0,
    text_dropout=0.0,
    precision="bf16",
)
_CAPTIONED = replace(READING, learning_rate=1.5e-3, text_dropout=0.1)
_JOINT = replace(_CAPTIONED, learning_rate=1.2e-3, i2t_weight=0.1, i2t_batch_size=16)
_HARDER_TWICE: tuple[Tag, ...] = (*TAGS, "colors", "color_attr", "counting", "position")
_TWO_THINGS: tuple[Tag, ...] = (
    *("color_attr", "position", "two_object", "colors", "color_attr"),
    *("position", "counting", "single_object", "color_attr", "position"),
)
_HALF_HIDDEN = SFT(all_hidden_share=0.5, num_untold=4)
PARTS = (
    Part("reading", SFT(all_hidden_share=1.0), READING, tags=("colors",)),
    Part("telling", _HALF_HIDDEN, replace(_CAPTIONED, optimizer_steps=2500), spread_every=2),
    Part(
        "joint",
        SFT(all_hidden_share=0.35),
        replace(_JOINT, optimizer_steps=4000, warmup_steps=100, schedule_steps=4000),
        spread_every=None,
    ),
    Part(
        "coloring",
        _HALF_HIDDEN,
        replace(_CAPTIONED, optimizer_steps=2000),
        tags=("colors", "color_attr", "colors", "color_attr", "counting", "position"),
        spread_every=2,
    ),
    Part(
        "binding",
        SFT(all_hidden_share=0.35, num_untold=16),
        replace(_JOINT, optimizer_steps=1500),
        tags=(*TAGS, "colors", "color_attr"),
        spread_every=8,
    ),
    Part(
        "settling",
        SFT(all_hidden_share=0.35, num_untold=16),
        replace(_JOINT, optimizer_steps=2200, schedule_steps=2200),
        tags=TAGS,
        spread_every=None,
    ),
    Part(
        "balancing",
        SFT(all_hidden_share=0.35),
        replace(_CAPTIONED, optimizer_steps=2250, learning_rate=1.2e-3, warmup_steps=100, schedule_steps=6000),
        tags=_HARDER_TWICE,
        spread_every=6,
    ),
    Part(
        "answering",
        SFT(all_hidden_share=0.15),
        replace(_JOINT, optimizer_steps=750, learning_rate=1.1e-3, warmup_steps=100, schedule_steps=4500),
        tags=_HARDER_TWICE,
        spread_every=None,
    ),
    Part(
        "relating",
        SFT(all_hidden_share=0.15, num_untold=6),
        replace(_JOINT, optimizer_steps=2200, learning_rate=1.1e-3, warmup_steps=50),
        tags=_TWO_THINGS,
        spread_every=None,
    ),
    Part(
        "ending",
        SFT(all_hidden_share=0.15),
        replace(_JOINT, optimizer_steps=2200, learning_rate=1e-3, warmup_steps=50, schedule_steps=2200),
        tags=_TWO_THINGS,
        spread_every=None,
    ),
)


def _ordinary(num_scenes: int) -> tuple[GenerationSet, InstructionSet]:
    """Return scenes and questions as the world draws them, not painted."""
    return GenerationSet(SCENES_SEED, num_scenes, drawn=False), InstructionSet(SCENES_SEED, num_scenes, drawn=False)


@torch.no_grad()
def encode_scenes(backbone: Harmon, *, num_scenes: int, parts: Sequence[Part] = PARTS) -> dict[str, Tensor]:
    """Encode scenes once, as the autoencoder is frozen and the scenes are few enough to be seen again.

    Returns:
        Latents [rows, columns, C] by the item ids of `sources` and of the spread scenes of `parts`.
    """
    table: dict[str, Tensor] = {}

    def encode(item_ids: Sequence[str], scenes: Sequence[Scene]) -> None:
        for start in range(0, len(scenes), ENCODED_AT_ONCE):
            latents = backbone.model.encode_images(pixels(scenes[start : start + ENCODED_AT_ONCE]))
            table.update(zip(item_ids[start : start + ENCODED_AT_ONCE], latents, strict=True))

    ordinary, _ = _ordinary(num_scenes)
    sets: list[GenerationSet | SpreadSet] = [ordinary]
    for part in parts:
        sets += [chosen for chosen in _sets(part, num_scenes) if chosen is not None and chosen not in sets]
    for chosen in sets:
        indices = range(len(chosen))
        encode([chosen.item_id(index) for index in indices], [chosen.scene(index) for index in indices])
    return table | {
        f"shapes-qa-{SCENES_SEED}-{index}": table[ordinary.item_id(index)] for index in range(len(ordinary))
    }


def _sets(part: Part, num_scenes: int) -> tuple[SpreadSet | None, GenerationSet | None]:
    """Return the spread and the ordinary scenes of a part."""
    num_spread = math.ceil(num_scenes / SPREAD_SHARE)
    spread = SpreadSet(SCENES_SEED, num_spread, part.tags, drawn=False)
    ordinary = GenerationSet(SCENES_SEED, num_scenes, part.tags, drawn=False)
    return (None if part.spread_every is None else spread, None if part.spread_every == 1 else ordinary)


def _captioned(part: Part, num_scenes: int) -> GenerationSource:
    """Return what a part draws from."""
    spread, ordinary = _sets(part, num_scenes)
    if spread is None or ordinary is None or part.spread_every is None:
        either = spread or ordinary
        assert either is not None
        return either
    return Alternating(spread, ordinary, part.spread_every)


def _run(part: Part, backbone: Harmon, *, directory: Path, seed: int, num_scenes: int) -> None:
    """Train on one part, in place, going on from what `directory` holds."""
    from segros_train.backbones.harmon.loading import load
    from segros_train.training.loop import train

    _, questions = _ordinary(num_scenes)
    outcome = train(
        backbone,
        part.method,
        recipe=part.recipe,
        generation=_captioned(part, num_scenes),
        instruction=questions if part.recipe.i2t_weight else None,
        directory=directory / part.name,
        seed=seed,
    )
    backbone.load_state_dict(load(backbone.card, source=outcome.checkpoint).state_dict())


def begin(card: BackboneCard, *, directory: Path, seed: int) -> Backbone:
    """Prepare a tiny backbone for its pretraining, as its family does.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.

    Raises:
        PrerequisiteError: If the card is not one that can be pretrained, or the folder cannot be written.
    """
    if card.family == "harmon":
        return prepare(card, directory=directory, seed=seed)
    family = importlib.import_module(f"segros_train.pretraining.{card.family}.pretrain")
    return family.prepare(card, directory=directory, seed=seed)


def sources(card: BackboneCard) -> tuple[GenerationSource, InstructionSource]:
    """Return the scenes and the questions of a card's last part, those that `begin` has encoded."""
    if card.family == "harmon":
        return _ordinary(NUM_SCENES)
    family = importlib.import_module(f"segros_train.pretraining.{card.family}.pretrain")
    count: int = getattr(family, "NUM_SCENES", NUM_SCENES)
    return PretrainingSet(SCENES_SEED, count), InstructionSet(SCENES_SEED, count)


def prepare(
    card: BackboneCard,
    *,
    directory: Path,
    seed: int,
    recipe: AutoencoderRecipe | None = None,
    num_scenes: int = NUM_SCENES,
    parts: Sequence[Part] = PARTS,
    joint: JointRecipe = JOINT,
) -> Harmon:
    """Build a Harmon whose tokenizer and autoencoder are trained and which draws and answers.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.
        recipe: How to train the autoencoder.
        num_scenes: Scenes of the training set, encoded here once.
        parts: How the unified model begins to learn.
        joint: How it goes on, on a CUDA device if there is one; what comes after is the caller's.

    Raises:
        PrerequisiteError: If the card is not one of the embedded world's, or the folder cannot be written.
    """
    from segros_train.backbones.harmon.loading import fresh

    if card.world != "shapes" or card.family != "harmon":
        raise PrerequisiteError(
            f"{card.name} cannot be pretrained here, only Harmon backbones of the embedded world; "
            "fine-tune it with another --method."
        )
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.exists():
        built = build_tokenizer(_corpus(), vocab_size=card.config.llm.vocab_size)
        replace_file(tokenizer, lambda path: built.save(str(path)))
    autoencoder = pretrain_autoencoder(card.config.vae, recipe or AutoencoderRecipe(), directory=directory, seed=seed)
    logger.info("latents of unit deviation need vae_scale %s", latent_scale(autoencoder))
    backbone = fresh(card, tokenizer=tokenizer, seed=seed)
    backbone.model.vae.load_state_dict(autoencoder.state_dict())
    backbone.latent_table = encode_scenes(backbone, num_scenes=num_scenes, parts=parts)
    for part in parts:
        _run(part, backbone, directory=directory, seed=seed, num_scenes=num_scenes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretrain_jointly(backbone, joint, directory=directory, seed=seed, scenes_seed=SCENES_SEED, device=device)
    return backbone.to("cpu")

"""Pretrain a tiny Harmon on the embedded world, from random weights to a base that draws and answers.

A byte-level tokenizer comes first, then the autoencoder, frozen from then on, then the unified model, in parts that
the ordinary loop of `segros_train.loop` runs with method SFT on scenes that are encoded once. The caption of an
ordinary scene tells of one or two cells in 36: a run on such scenes alone, and with narrower first weights, ignored
every caption after 2,500 updates. So what captions tell of is first spread over half of the cells, and the loss is
taken where captions tell of something, before all cells count alike.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.data import shapes_language
from segros_train.data.shapes import Alternating, GenerationSet, InstructionSet, PretrainingSet, SpreadSet
from segros_train.data.shapes_world import CELL_PX, IMAGE_PX, TAGS, crowded_scene, render, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, replace_file
from segros_train.methods.sft import SFT
from segros_train.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from segros_train.backbone import Backbone
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.backbones.harmon.config import VaeConfig
    from segros_train.backbones.harmon.vae import AutoencoderKL
    from segros_train.data import GenerationSource, InstructionSource
    from segros_train.data.shapes_world import Scene, Tag
    from segros_train.types import BackboneCard

__all__ = [
    "NUM_SCENES",
    "SCENES_SEED",
    "PARTS",
    "AutoencoderRecipe",
    "Part",
    "begin",
    "build_tokenizer",
    "encode_scenes",
    "latent_scale",
    "prepare",
    "pretrain_autoencoder",
    "sources",
]

logger = logging.getLogger(__name__)

SCENES_SEED = 1000
"""Seed of the scenes, apart from those of fine-tuning."""
NUM_SCENES = 40_000
FIRST_LOGVAR = -6.0
SPREAD_SHARE = 3
"""For how many ordinary scenes there is one that is spread, of each kind."""
ENCODED_AT_ONCE = 64
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the autoencoder is pretrained.

    It learns objects from quarters of crowded scenes, then ordinary scenes; then from whole crowded scenes with
    every fourth batch an ordinary one; then from such scenes with the background counted lightly, so that the
    latents spend themselves on objects, and with noise on the latents, so that it can decode what a sampler draws.

    Attributes:
        steps: Updates of the first part.
        ordinary_steps: Those at its end that see ordinary scenes.
        refining_steps: Updates of the second part.
        object_steps: Updates of the third part.
        batch_size: Scenes per update.
        learning_rate: Peak rate of Adam in each part, with a warm-up and a cosine to zero.
        kl_weight: Weight of the mean KL divergence per latent number in the first two parts.
        object_kl_weight: The same in the third, where latents grow against the noise.
        background_weight: Weight of a background pixel's error in the third part; an object's counts 1.
        latent_noise: Deviation of the noise on latents in the third part, beside their own.
        warmup_steps: Updates of linear warm-up.
        checkpoint_steps: Updates between saved states.
    """

    steps: int = 3000
    ordinary_steps: int = 300
    refining_steps: int = 2000
    object_steps: int = 8000
    batch_size: int = 8
    learning_rate: float = 2e-3
    kl_weight: float = 1e-5
    object_kl_weight: float = 1e-4
    background_weight: float = 0.1
    latent_noise: float = 0.1
    warmup_steps: int = 100
    checkpoint_steps: int = 250

    @property
    def parts(self) -> tuple[int, int, int]:
        """Updates of each part."""
        return self.steps, self.refining_steps, self.object_steps

    def place(self, step: int) -> tuple[int, int]:
        """Return the part a step lies in and its number there, all counted from 0."""
        for part, length in enumerate(self.parts):
            if step < length:
                return part, step
            step -= length
        raise ValueError(f"The recipe ends before step {step + sum(self.parts)}.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        part, done = self.place(step)
        warm = min(1.0, (done + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done / self.parts[part]))


def build_tokenizer(texts: Sequence[str], *, vocab_size: int = 768) -> Tokenizer:
    """Train a byte-level BPE tokenizer, the kind Qwen2 has, whose words are those of `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return rendered scenes, [scenes, 3, height, width] in [-1, 1]."""
    pixels = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _quarters(images: Tensor) -> Tensor:
    """Cut [B, 3, height, width] into [4 B, 3, height / 2, width / 2]."""
    halves = torch.cat(images.chunk(2, dim=2))
    return torch.cat(halves.chunk(2, dim=3))


def _object_pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return [scenes, 1, height, width] bool, True on the squares of objects and one pixel around them."""
    marks = np.zeros((len(scenes), 1, IMAGE_PX, IMAGE_PX), bool)
    for mark, scene in zip(marks, scenes, strict=True):
        for thing in scene.objects:
            top, left = thing.row * CELL_PX + thing.offset_px[1], thing.column * CELL_PX + thing.offset_px[0]
            mark[0, top - 1 : top + thing.size_px + 1, left - 1 : left + thing.size_px + 1] = True
    return torch.from_numpy(marks)


def _autoencoder_batch(recipe: AutoencoderRecipe, step: int, seed: int) -> tuple[Tensor, Tensor | float]:
    """Return the images of a step and the weights of their pixels."""
    part = recipe.place(step)[0]
    ordinary = step % 4 == 0 if part else step >= recipe.steps - recipe.ordinary_steps
    draw = sample_scene if ordinary else crowded_scene
    scenes = [draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)]
    images = _pixels(scenes)
    if not (ordinary or part):
        images = _quarters(images)
    weights = torch.where(_object_pixels(scenes), 1.0, recipe.background_weight) if part == 2 else 1.0
    return images.contiguous(memory_format=torch.channels_last), weights


@torch.no_grad()
def _prepare(model: AutoencoderKL) -> None:
    """Start as an almost linear and almost noiseless autoencoder, from which training takes minutes, not hours.

    Residual branches begin at zero, convolutions between levels keep the scale of their input, and the latent
    noise is small beside the latents.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(module.weight)
    moments = model.quant_conv
    channels = moments.out_channels // 2
    assert moments.bias is not None
    nn.init.zeros_(moments.weight[channels:])
    nn.init.constant_(moments.bias[channels:], FIRST_LOGVAR)


def _autoencoder_loss(
    model: AutoencoderKL, images: Tensor, weights: Tensor | float, rng: torch.Generator, *, noise: float, kl: float
) -> Tensor:
    mean, logvar = model.moments(images)
    deviation = torch.exp(0.5 * logvar) + noise
    latents = mean + deviation * torch.randn(mean.shape, generator=rng)
    error = model.decode(latents.permute(0, 2, 3, 1)) - images
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (weights * (error.square() + 0.1 * error.abs())).mean() + kl * divergence


def pretrain_autoencoder(
    config: VaeConfig, recipe: AutoencoderRecipe, *, directory: Path, seed: int = 0
) -> AutoencoderKL:
    """Train the autoencoder, resuming from `directory` if a stopped run left its state there.

    Args:
        config: Sizes.
        recipe: How to train.
        directory: Where `vae.pt` (weights, optimizer, step) and `vae.jsonl` (loss by step) go.
        seed: Seed of the initial weights, the scenes and the latents' noise.
    """
    from segros_train.backbones.harmon.vae import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(config)
    _prepare(model)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    state, first = directory / "vae.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began = time.monotonic()
    last = sum(recipe.parts)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images, weights = _autoencoder_batch(recipe, step, seed)
        objects = recipe.place(step)[0] == 2
        loss = _autoencoder_loss(
            model,
            images,
            weights,
            rng,
            noise=recipe.latent_noise if objects else 0.0,
            kl=recipe.object_kl_weight if objects else recipe.kl_weight,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            record = {"step": done, "loss": round(loss.item(), 5), "seconds": round(time.monotonic() - began, 1)}
            append_jsonl(directory / "vae.jsonl", record)
            logger.info("autoencoder %s", record)
        if done % recipe.checkpoint_steps == 0 or done == last:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            replace_file(state, functools.partial(torch.save, content))
    return model.eval()


@torch.no_grad()
def latent_scale(model: AutoencoderKL, *, num_scenes: int = 512, seed: int = 0) -> float:
    """Return the factor that gives the latents of ordinary scenes unit standard deviation."""
    starts = range(0, num_scenes, 64)
    parts = [model.encode(_pixels([sample_scene(seed, start + i) for i in range(64)])) for start in starts]
    return round(1 / torch.cat(parts).std().item(), 4)


def _corpus() -> list[str]:
    """Return what the tokenizer shall know: the world's language, the prompt template, the instructions."""
    from segros_train.backbones.harmon.instructions import INSTRUCTIONS

    template = ["user\n", "assistant\n", "Generate an image: ", "Generate an image."]
    return shapes_language.corpus(4000) + (template + list(INSTRUCTIONS)) * 100


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
            latents = backbone.model.encode_images(_pixels(scenes[start : start + ENCODED_AT_ONCE]))
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
    from segros_train.backbones.harmon import load
    from segros_train.loop import train

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
    family = importlib.import_module(f"segros_train.backbones.{card.family}.pretrain")
    return family.prepare(card, directory=directory, seed=seed)


def sources(card: BackboneCard) -> tuple[GenerationSource, InstructionSource]:
    """Return the scenes and the questions of a card's last part, those that `begin` has encoded."""
    if card.family == "harmon":
        return _ordinary(NUM_SCENES)
    family = importlib.import_module(f"segros_train.backbones.{card.family}.pretrain")
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
) -> Harmon:
    """Build a Harmon whose tokenizer and autoencoder are trained and which has begun to read.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.
        recipe: How to train the autoencoder.
        num_scenes: Scenes of the training set, encoded here once.
        parts: How the unified model learns before the last part, which is the caller's.

    Raises:
        PrerequisiteError: If the card is not one of the embedded world's, or the folder cannot be written.
    """
    from segros_train.backbones.harmon import fresh

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
    return backbone

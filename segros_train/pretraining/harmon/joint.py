"""The last and longest part of a tiny Harmon's pretraining: drawing and answering at once, in large batches.

The diffusion head hears of the caption through one vector per cell, and its loss says little of what that vector lacks:
an exchanged caption adds a tenth to it on objects. So a linear classifier reads the same vectors and names what each
hidden cell shows, nothing or an object of a shape and a colour; its loss goes through the whole model. It is dropped
at the end. Without it 6,700 updates of 512 scenes left GenEval-on-shapes at 48; with it 16,100 more raised it to 75.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.common.dialogues import labels_of
from segros_train.backbones.common.precision import mixed_precision
from segros_train.backbones.harmon.answering import next_token_loss, read
from segros_train.backbones.harmon.diffusion import draw_timesteps
from segros_train.backbones.harmon.mar import gather_rows
from segros_train.backbones.harmon.model import scale_gradient
from segros_train.backbones.harmon.prompts import NO_CAPTION
from segros_train.data.shapes.captions import question
from segros_train.data.shapes.sets import GenerationSet, SpreadSet
from segros_train.data.shapes.world import GRID
from segros_train.pretraining.encoded import MIXTURE, NUM_KINDS, EncodedScenes, encode_scenes, scene_of, stored_scenes
from segros_train.pretraining.fitting import Averaged, PartRecipe, fit

if TYPE_CHECKING:
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.types import Turn

__all__ = ["JOINT", "JointRecipe", "drawing_losses", "pretrain_jointly"]

NUM_CELLS = GRID * GRID
TOLD_UNTIL = 0.7
"""Share of the updates after which every cell counts alike."""


@dataclass(frozen=True)
class JointRecipe(PartRecipe):
    """How drawing and answering are learned together.

    Attributes:
        num_questions: Questions per update.
        num_scenes: Ordinary scenes, seen again and again; the questions are about them too.
        num_spread: Spread scenes.
        spread_shares: Share of spread scenes in a batch, at the start and at the end.
        object_weights: Weight of a cell that holds an object, against 1 of one that does not, at the start and from
            `TOLD_UNTIL` on.
        kind_weights: Weight of the classifier's loss, at the start and at the end.
        i2t_weight: Weight of the loss of the answers.
        image_gradient: Factor of the gradient that flows from questions into encodings of images.
        all_hidden_share: Share of updates with every cell hidden; the others hide any number of cells alike.
        text_dropout: Share of captions left out.
    """

    num_questions: int = 256
    num_scenes: int = 500_000
    num_spread: int = 60_000
    spread_shares: tuple[float, float] = (0.15, 0.02)
    object_weights: tuple[float, float] = (4.0, 1.0)
    kind_weights: tuple[float, float] = (0.5, 0.1)
    i2t_weight: float = 0.25
    image_gradient: float = 0.5
    all_hidden_share: float = 0.2
    text_dropout: float = 0.1

    def at(self, values: tuple[float, float], step: int, *, until: float = 1.0) -> float:
        """Return the value of a step, between the two of a run."""
        return float(np.interp(step / self.steps, (0.0, until), values))


JOINT = JointRecipe(
    steps=16_000, batch_size=512, learning_rate=1.5e-3, held_share=0.6, warmup_steps=300, weight_decay=0.02
)


def pretrain_jointly(
    backbone: Harmon, recipe: JointRecipe, *, directory: Path, seed: int, scenes_seed: int, device: torch.device
) -> None:
    """Train everything but the autoencoder, in place; the running average of the weights is kept.

    Args:
        backbone: Its autoencoder is done.
        recipe: How to train.
        directory: Where `joint-scenes.pt`, `joint.pt` and `joint.jsonl` go.
        seed: Seed of the draws.
        scenes_seed: Seed of the scenes and of the questions about them.
        device: Where to train; the backbone is left there.
    """
    model = backbone.model.to(device)
    ordinary = GenerationSet(scenes_seed, recipe.num_scenes, MIXTURE, drawn=False)
    spread = SpreadSet(scenes_seed, recipe.num_spread, MIXTURE, drawn=False)

    def encode() -> list[EncodedScenes]:
        return [
            encode_scenes(model, functools.partial(scene_of, chosen), len(chosen), device=device)
            for chosen in (ordinary, spread)
        ]

    scenes = stored_scenes(directory / "joint-scenes.pt", encode)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Linear(model.config.mar.decoder_width, NUM_KINDS).to(device)
    both = Averaged(nn.ModuleDict({"model": model, "classifier": classifier}), kept=0.999)
    model.train()

    def loss(step: int, rng: torch.Generator) -> Tensor:
        num_spread = round(recipe.at(recipe.spread_shares, step) * recipe.batch_size)
        picked = [
            part.rows(torch.randint(len(part.captions), (count,), generator=rng).tolist())
            for part, count in zip(scenes, (recipe.batch_size - num_spread, num_spread), strict=True)
            if count
        ]
        batch = EncodedScenes.joined(picked)
        all_hidden = float(torch.rand((), generator=rng)) < recipe.all_hidden_share
        num_visible = 0 if all_hidden else int(torch.randint(NUM_CELLS, (), generator=rng))
        asked = torch.randint(recipe.num_scenes, (recipe.num_questions,), generator=rng).tolist()
        with mixed_precision(device, torch.bfloat16):
            noise, kind = drawing_losses(
                backbone,
                classifier,
                batch,
                rng,
                num_visible=num_visible,
                object_weight=recipe.at(recipe.object_weights, step, until=TOLD_UNTIL),
                dropout=recipe.text_dropout,
            )
            turns = [question(ordinary.scene(i), np.random.default_rng((scenes_seed, i, 1))) for i in asked]
            answers = _answering_loss(backbone, scenes[0].rows(asked).latents, turns, recipe.image_gradient)
        return noise + recipe.at(recipe.kind_weights, step) * kind + recipe.i2t_weight * answers

    fit(both, both.trained(), loss, recipe, path=directory / "joint.pt", seed=seed, after=both.average)
    both.adopt()
    model.eval()


def drawing_losses(
    backbone: Harmon,
    classifier: nn.Module,
    batch: EncodedScenes,
    rng: torch.Generator,
    *,
    num_visible: int,
    object_weight: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Return the diffusion loss of the hidden cells and the classifier's, two scalars.

    Args:
        backbone: What draws.
        classifier: Returns [R, NUM_KINDS] logits of conditions [R, decoder width].
        batch: B scenes.
        rng: Source of every draw, on the CPU.
        num_visible: Visible cells of each scene, the same for all and fewer than there are.
        object_weight: Weight of a cell that holds an object, against 1.
        dropout: Share of captions left out.
    """
    model, tokenizer, device = backbone.model, backbone.tokenizer, backbone.device
    limit = model.config.max_caption_tokens
    dropped = (torch.rand(len(batch.captions), generator=rng) < dropout).tolist()
    prompts = tokenizer.pad(
        [
            tokenizer.request(NO_CAPTION, limit=limit) if drop else tokenizer.caption(text, limit=limit)
            for text, drop in zip(batch.captions, dropped, strict=True)
        ],
        device=device,
    )
    order = torch.rand(batch.kinds.shape, generator=rng).argsort(dim=1).to(device)
    visible, hidden = order[:, :num_visible].sort(dim=1).values, order[:, num_visible:]
    latents = batch.latents.to(device, torch.float32)
    conditions = model.conditions(model.llm.model.embed_tokens(prompts.ids), prompts.valid, latents, visible)
    conditions = gather_rows(conditions, hidden).flatten(0, 1)
    cells = gather_rows(latents.flatten(1, 2), hidden).flatten(0, 1)
    shown = batch.kinds.to(device).long().gather(1, hidden).flatten()
    weights = torch.where(shown > 0, object_weight, 1.0)
    weights = weights / weights.sum()
    timesteps = draw_timesteps(model.config.mar.diffusion, len(cells), rng)
    noise = torch.randn(*timesteps.shape, cells.shape[1], generator=rng)
    rows = model.mar.diffloss.row_losses(conditions, cells, timesteps=timesteps.to(device), noise=noise.to(device))
    error = rows.total.view(len(timesteps), -1).mean(dim=0)
    naming = F.cross_entropy(classifier(conditions).float(), shown, reduction="none")
    return (error * weights).sum(), (naming * weights).sum()


def _answering_loss(backbone: Harmon, latents: Tensor, turns: Sequence[Turn], image_gradient: float) -> Tensor:
    """Return the loss of the answers to one question per scene, whose latents are [B, h, w, C]."""
    model, tokenizer = backbone.model, backbone.tokenizer
    latents = latents.to(backbone.device, torch.float32)
    positions = model.mar.positions((latents.shape[1], latents.shape[2]))
    encoded = model.mar.encode(latents.flatten(1, 2), None, positions)
    image = scale_gradient(model.to_language(encoded), image_gradient)
    dialogues = [tokenizer.dialogue((turn,), limit=model.config.max_dialogue_tokens) for turn in turns]
    return next_token_loss(model, read(model, image, dialogues), labels_of(dialogues, image))

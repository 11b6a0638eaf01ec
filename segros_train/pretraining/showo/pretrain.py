"""Pretrain a tiny Show-o on the embedded world, from random weights to a base that draws and answers.

Parts, each going on where a stopped run left it:

1. a byte-level tokenizer of the world's texts;
2. the tokenizer of images (`tiny_vq`) and the vision tower (`tiny_tower`), frozen from then on;
3. language: sentences of the world, next token by next token;
4. reading: crowds of one shape and colour, every cell hidden;
5. painting: the decoder of the tokenizer of images alone, which changes no code;
6. objects: ordinary scenes and questions, with most of the loss on the codes of objects. A caption tells of one to four
   cells in 36, and what it does not tell of, the texture of the background, is most of the plain loss;
7. everything: the plain losses. This part is the ordinary run of `segros train`.

Whether captions are read is measured after parts 4 and 6: `caption_gain`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.backbones.showo.loading import load
from segros_train.backbones.showo.prompts import END
from segros_train.data.shapes import captions as shapes_language
from segros_train.data.shapes.sets import CROWD_EVERY, CrowdSet, InstructionSet, PretrainingSet
from segros_train.data.shapes.world import matching_crowd, sample_scene
from segros_train.draws import keyed_generator
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, replace_file
from segros_train.methods.sft import SFT
from segros_train.pretraining.showo.fitting import Fit, fit
from segros_train.pretraining.showo.tower import TowerRecipe, pretrain_tower
from segros_train.pretraining.showo.vq import OBJECT_BIT, VqRecipe, bits_of, pretrain_decoder, pretrain_vq
from segros_train.pretraining.tiny import build_tokenizer, pixels
from segros_train.types import GenerationBatch, Recipe, Supervision
from segros_train.weight_files import RESTART, read_weight_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from segros_train.backbones.showo.adapter import Showo
    from segros_train.data.samples import GenerationSource, InstructionSource
    from segros_train.data.shapes.world import Scene
    from segros_train.types import BackboneCard

__all__ = ["PretrainingRecipe", "caption_gain", "prepare"]

logger = logging.getLogger(__name__)

SCENES_SEED = 1000
NUM_SCENES = 15_000
ENCODED_AT_ONCE = 64
CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class PretrainingRecipe:
    """How the parts before the ordinary run are trained.

    Attributes:
        vq: The tokenizer of images.
        tower: The vision tower.
        language: Sentences.
        reading: Crowds.
        objects: Ordinary scenes, most of the loss on objects.
        background_weight: Weight of a background cell's loss there, an object's being 1.
        all_hidden_share: Share of batches there whose every cell is hidden.
        num_scenes: Scenes of the training set, encoded once.
    """

    vq: VqRecipe = field(default_factory=VqRecipe)
    tower: TowerRecipe = field(default_factory=TowerRecipe)
    language: Fit = field(default_factory=lambda: Fit(steps=80, learning_rate=2e-3, warmup_steps=20))
    reading: Recipe = field(
        default_factory=lambda: Recipe(
            optimizer_steps=200,
            batch_size=32,
            learning_rate=2e-3,
            warmup_steps=30,
            schedule_steps=100_000,
            weight_decay=0.02,
            i2t_weight=0.0,
            text_dropout=0.0,
        )
    )
    objects: Recipe = field(
        default_factory=lambda: Recipe(
            optimizer_steps=600,
            batch_size=32,
            i2t_batch_size=4,
            learning_rate=2e-3,
            warmup_steps=30,
            schedule_steps=100_000,
            weight_decay=0.02,
            text_dropout=0.1,
        )
    )
    background_weight: float = 0.1
    all_hidden_share: float = 0.5
    num_scenes: int = NUM_SCENES


def prepare(card: BackboneCard, *, directory: Path, seed: int, recipe: PretrainingRecipe | None = None) -> Showo:
    """Build a Show-o with all parts trained that come before the ordinary run.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.
        recipe: How to train.

    Raises:
        PrerequisiteError: If the card is not one of the embedded world's, or the folder cannot be written.
    """
    from segros_train.backbones.showo.loading import fresh

    if card.world != "shapes" or card.config.clip is None:
        raise PrerequisiteError(
            f"{card.name} cannot be pretrained here, only a Show-o of the embedded world with a vision tower; "
            "fine-tune it with another --method."
        )
    recipe = recipe or PretrainingRecipe()
    backbone = fresh(card, tokenizer=_tokenizer(card, directory), seed=seed)
    pretrain_vq(backbone.model.vq, recipe.vq, directory=directory, seed=seed)
    pretrain_tower(backbone.model, recipe.tower, directory=directory, seed=seed)
    backbone.latent_table = _encoded(backbone, directory / "codes.safetensors", num_scenes=recipe.num_scenes)
    _learn_language(backbone, recipe.language, directory=directory, seed=seed)
    learn = partial(_learn, backbone, directory=directory, seed=seed)
    crowds = CrowdSet(SCENES_SEED, recipe.num_scenes // CROWD_EVERY + 1)
    backbone.code_weights = _code_weights(backbone, recipe.background_weight)
    learn("reading", recipe.reading, crowds, None, share=1.0)
    pretrain_decoder(backbone.model.vq, recipe.vq, directory=directory, seed=seed)
    learn(
        "objects",
        recipe.objects,
        PretrainingSet(SCENES_SEED, recipe.num_scenes),
        InstructionSet(SCENES_SEED, recipe.num_scenes),
        share=recipe.all_hidden_share,
    )
    backbone.code_weights = None
    return backbone


def _tokenizer(card: BackboneCard, directory: Path) -> Path:
    """Return the file of a tokenizer of the world's texts, trained when absent."""
    path = directory / "tokenizer.json"
    if not path.exists():
        texts = shapes_language.corpus(4000) + (["USER: ", " ASSISTANT: ", *INSTRUCTIONS]) * 100
        built = build_tokenizer(texts, vocab_size=card.config.llm.text_vocab_size)
        assert built.token_to_id(END) is not None
        replace_file(path, lambda draft: built.save(str(draft)))
    return path


@torch.no_grad()
def _encoded(backbone: Showo, path: Path, *, num_scenes: int) -> dict[str, Tensor]:
    """Return codes [N] by the item ids of the training sets, encoded when `path` is absent."""
    if not path.exists():
        num_crowds = num_scenes // CROWD_EVERY + 1
        tables = {
            "ordinary": _codes(backbone, partial(sample_scene, SCENES_SEED), num_scenes),
            "crowds": _codes(backbone, partial(matching_crowd, SCENES_SEED), num_crowds),
        }
        replace_file(path, lambda draft: save_file(tables, draft))
    tables = read_weight_file(path, remedy=RESTART)
    table = {f"shapes-{SCENES_SEED}-{index}": codes for index, codes in enumerate(tables["ordinary"])}
    return table | {f"shapes-crowd-{SCENES_SEED}-{index}": codes for index, codes in enumerate(tables["crowds"])}


def _codes(backbone: Showo, scene: Callable[[int], Scene], count: int) -> Tensor:
    parts = []
    for start in range(0, count, ENCODED_AT_ONCE):
        images = pixels([scene(index) for index in range(start, min(start + ENCODED_AT_ONCE, count))])
        parts.append(backbone.model.encode_images(images).flatten(1).to(torch.int32))
    return torch.cat(parts)


def _learn_language(backbone: Showo, recipe: Fit, *, directory: Path, seed: int) -> None:
    """Train the language model on sentences of the world, in place."""
    model, tokenizer = backbone.model, backbone.tokenizer
    corpus = shapes_language.corpus(2000)
    rows = [tokenizer.sentence(text, limit=48) for text in corpus]

    def loss(step: int) -> Tensor:
        rng = keyed_generator(seed, "sentences", step)
        chosen = [rows[i] for i in torch.randint(len(rows), (64,), generator=rng).tolist()]
        width = max(map(len, chosen))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in chosen])
        labels = torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in chosen])
        states = model.hidden(model.embed(ids), torch.arange(width).unsqueeze(0))
        return model.next_token_nll(states, labels)

    fit(model.showo, loss, recipe, path=directory / "language.pt")


def _code_weights(backbone: Showo, background: float) -> Tensor:
    """Return the weight of each code, [K]: 1 where its first bit says object."""
    bits = backbone.model.vq.quantize.embedding[:, OBJECT_BIT]
    return torch.where(bits > 0, 1.0, background)


def _learn(
    backbone: Showo,
    name: str,
    recipe: Recipe,
    generation: GenerationSource,
    instruction: InstructionSource | None,
    *,
    share: float,
    directory: Path,
    seed: int,
) -> None:
    """Train in place in a folder of its own, going on from what it holds, and record what captions are worth."""
    from segros_train.training.loop import train

    outcome = train(
        backbone,
        SFT(all_hidden_share=share),
        recipe=recipe,
        generation=generation,
        instruction=instruction,
        directory=directory / name,
        seed=seed,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    state = load(backbone.card, source=outcome.checkpoint).state_dict()
    backbone.load_state_dict(state)
    gain = round(caption_gain(backbone), 4)
    append_jsonl(directory / "captions.jsonl", {"part": name, "step": outcome.step, "caption_gain": gain})
    logger.info("after %s, an exchanged caption costs %.4f", name, gain)


@torch.no_grad()
def caption_gain(backbone: Showo, *, num_scenes: int = 128, seed: int = 7) -> float:
    """Return what exchanged captions add to the loss on objects, all cells hidden: 0 where captions are not read.

    Args:
        backbone: The backbone.
        num_scenes: Ordinary scenes, each given the caption of the next.
        seed: Seed of the scenes, other than those of training.
    """
    was_training, weights, table = backbone.training, backbone.code_weights, backbone.latent_table
    scenes = [sample_scene(seed, index) for index in range(num_scenes)]
    captions = tuple(shapes_language.caption(scene) for scene in scenes)
    objects = (bits_of(scenes)[0][:, OBJECT_BIT] > 0).flatten(1)
    supervision = Supervision(caption=True, masked=torch.ones_like(objects), target=objects)
    images, item_ids = pixels(scenes), tuple(map(str, range(num_scenes)))
    backbone.eval()
    backbone.latent_table = backbone.code_weights = None
    # From equal generators the same captions are dropped.
    losses = [
        float(backbone.t2i_loss(GenerationBatch(images, texts, item_ids), supervision, keyed_generator(seed, "gain")))
        for texts in (captions, (*captions[1:], captions[0]))
    ]
    backbone.train(was_training)
    backbone.latent_table, backbone.code_weights = table, weights
    return losses[1] - losses[0]

"""OpenUni behind the project's contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from segros_train.backbone import Backbone, ImageTransform, ParameterGroups, Realisation
from segros_train.backbones.common.images import CropToSquare, to_pixels
from segros_train.backbones.common.instructions import instructions_from
from segros_train.backbones.openuni import answering, sampling
from segros_train.backbones.openuni.flow import NUM_TRAINING_STEPS, add_noise, masked_velocity_error, timesteps_of
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prefix import Prefix
from segros_train.backbones.openuni.pretrained import write_checkpoint
from segros_train.backbones.openuni.prompts import OpenUniTokenizer, Prompt
from segros_train.backbones.openuni.state_dict import is_frozen, upstream_names
from segros_train.types import Embeddings, GenerationBatch, GenerationSettings, InstructionBatch, Supervision

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.types import BackboneCard, Checkpointing, Grid

__all__ = ["OpenUni", "ResizeToSquare"]

ImageState = Literal["latents", "seen"]


@dataclass(frozen=True)
class ResizeToSquare:
    """Take the whole image as one tile, as InternVL does with an image that it does not cut."""

    size_px: int

    def __call__(self, image: Image, rng: Generator | None = None) -> Tensor:
        """Return [3, size, size] float32 in [-1, 1]."""
        return to_pixels(image.convert("RGB"), self.size_px)


class OpenUni(Backbone):
    """Realise any supervision with a frozen language model, learned queries and a diffusion transformer.

    Hints are visual embeddings where the language model has an image: behind the start of the user's turn. The
    generator noises every cell alike; a supervision's masked cells are where the loss is taken, unless the
    configuration's `corruption` says otherwise. A caption that is dropped out is shown no hint and takes the loss
    everywhere; so does one of fewer than two tokens, on which no map can be grounded.
    """

    def __init__(
        self,
        card: BackboneCard,
        model: OpenUniModel,
        tokenizer: OpenUniTokenizer,
        *,
        realisation: Realisation | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            card: What the model realises.
            model: Modules and weights.
            tokenizer: The language model's.
            realisation: Choices to follow.

        Raises:
            PrerequisiteError: If the configuration's file of instructions cannot be read.
        """
        super().__init__()
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self.realisation = realisation or Realisation()
        self.instructions = instructions_from(model.config.instructions_file)
        self._encoded: tuple[Tensor, dict[str, Tensor]] | None = None
        self._empty: tuple[Prompt, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.meta_queries.device

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again; see `OpenUniModel.set_checkpointing`."""
        self.model.set_checkpointing(checkpointing)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of an image to draw."""
        autoencoder = self.model.config.autoencoder
        side = self.card.image_size_px // autoencoder.stride_px
        return autoencoder.latent_channels, side, side

    @torch.no_grad()
    def frozen_states(self, batch: GenerationBatch, *, captions: bool = False) -> dict[str, Tensor | list[Tensor]]:
        """Return what frozen parts make of a batch: `latents` [B, C, h, w] and visual embeddings `seen` [B, N, D].

        With `captions` also `prompt`, the ids of each caption's prompt, and `prefix`, its keys and values in the
        language model [tokens, layers, 2, key heads, head width]: 12 KiB a token of openuni-1.6b in bf16, so up to
        1.5 MiB a caption, and 28 KiB and 3.5 MiB of openuni-3.6b. Queries are trained, so their path is not kept.
        """
        states: dict[str, Tensor | list[Tensor]] = {
            name: self._of_images(name, batch.images) for name in ("latents", "seen")
        }
        if captions:
            prompts = [self._caption(text) for text in batch.captions]
            states["prompt"] = [torch.tensor(prompt.ids, dtype=torch.int32) for prompt in prompts]
            states["prefix"] = self._read(prompts).apart()
        return states

    @torch.no_grad()
    def _of_images(self, name: ImageState, images: Tensor) -> Tensor:
        images = images.to(self.device)
        return self.model.encode_images(images) if name == "latents" else self.model.see(images)

    def _frozen(self, name: ImageState, batch: GenerationBatch) -> Tensor:
        """Look a frozen state of images up or compute it, once for the `embed` and `t2i_loss` of a step, if asked."""
        if self._encoded is None or self._encoded[0] is not batch.images:
            self._encoded = (batch.images, {})
        states = self._encoded[1]
        if name not in states:
            states[name] = self._looked_up(name, batch) if self.kept_states else self._of_images(name, batch.images)
        return states[name]

    def _looked_up(self, name: ImageState, batch: GenerationBatch) -> Tensor:
        """Look a frozen state of images up, and compute that of items that were not encoded."""
        kept = [self._kept(item_id) for item_id in batch.item_ids]
        new = [place for place, item in enumerate(kept) if item is None]
        rest = iter(self._of_images(name, batch.images[new]) if new else ())
        rows = [next(rest) if item is None else item[name].to(self.device) for item in kept]
        return torch.stack([row.float() for row in rows])

    def _kept(self, item_id: str) -> Mapping[str, Tensor] | None:
        return None if self.kept_states is None else self.kept_states.get(item_id)

    @torch.no_grad()
    def embed(self, batch: GenerationBatch) -> Embeddings:
        """Return caption rows of the embedding table and the visual embeddings, both before the language model."""
        prompts = self.tokenizer.pad([self._caption(text) for text in batch.captions], device=self.device)
        text, image = self.model.embed_ids(prompts.ids), self._frozen("seen", batch)
        image_grid, latent_grid = self.grids(batch)
        return Embeddings(text, prompts.caption, image, image_grid, latent_grid)

    def grids(self, batch: GenerationBatch) -> tuple[Grid, Grid]:
        """Return the grids of the vision tower's embeddings and of the autoencoder's latent cells."""
        stride = self.model.config.autoencoder.stride_px
        return self.model.config.vision.grid, (batch.images.shape[2] // stride, batch.images.shape[3] // stride)

    def _caption(self, caption: str, num_hints: int = 0) -> Prompt:
        config = self.model.config
        limit = config.max_text_tokens if num_hints == 0 else config.max_tokens
        return self.tokenizer.caption(caption, num_hints=num_hints, limit=limit, truncation=config.truncation)

    def caption_tokens(self, caption: str) -> list[str]:
        """Return the text of each caption token, in the order of the valid places of `embed`'s text."""
        config = self.model.config
        return self.tokenizer.caption_tokens(caption, limit=config.max_text_tokens, truncation=config.truncation)

    def masking_ratio(self, size: int, rng: Generator) -> None:
        """Return None: the generator masks nothing."""

    def t2i_loss(self, batch: GenerationBatch, supervision: Supervision, rng: Generator) -> Tensor:
        """Return the flow loss of the target cells, each sample's mean counting alike, a scalar.

        Raises:
            ValueError: If neither a caption nor hints condition the image.
        """
        if supervision.hints is None and not supervision.caption:
            raise ValueError("OpenUni needs a caption or hints.")
        latents, size = self._frozen("latents", batch), len(batch.captions)
        prompts, plain = self._prompts(batch.captions, supervision, rng)
        visual = None
        if supervision.hints is not None and not all(plain):
            kept = torch.tensor([row for row, is_plain in enumerate(plain) if not is_plain], device=self.device)
            hints = supervision.hints.to(self.device)[kept].unsqueeze(-1)
            seen = self._frozen("seen", batch)[kept]
            visual = seen.gather(1, hints.expand(-1, -1, seen.shape[2])).flatten(0, 1)
        conditions = self.conditions(prompts, visual, item_ids=batch.item_ids)
        uniform = torch.rand(size, generator=rng, device=rng.device)
        noise = torch.randn(latents.shape, generator=rng, device=rng.device).to(self.device)
        timesteps = timesteps_of(uniform).to(self.device)
        weights, sigmas = self._corruption(supervision, timesteps / NUM_TRAINING_STEPS, plain, latents)
        velocity = self.model.velocity(add_noise(latents, noise, sigmas), conditions, timesteps)
        return masked_velocity_error(velocity, latents, noise, weights)

    def _prompts(
        self, captions: Sequence[str], supervision: Supervision, rng: Generator
    ) -> tuple[list[Prompt], list[bool]]:
        """Tokenise what conditions each image, and tell which samples are shown no hint and take the whole loss."""
        num_hints = 0 if supervision.hints is None else supervision.hints.shape[1]
        size = len(captions)
        if not supervision.caption:
            picks = torch.randint(len(self.instructions), (size,), generator=rng, device=rng.device).tolist()
            rows = [self._with_hints(self.tokenizer.request, self.instructions[pick], num_hints) for pick in picks]
            return rows, [False] * size
        dropped = (torch.rand(size, generator=rng, device=rng.device) < self.realisation.text_dropout).tolist()
        rows, plain = [], []
        for caption, drop in zip(captions, dropped, strict=True):
            bare = self.tokenizer.no_caption() if drop else self._caption(caption)
            is_plain = drop or sum(bare.caption) < 2
            plain.append(is_plain)
            rows.append(bare if is_plain or not num_hints else self._with_hints(self._caption, caption, num_hints))
        return rows, plain

    def _with_hints(self, prompt: Callable[..., Prompt], text: str, num_hints: int) -> Prompt:
        """Tokenise a prompt with places for hints where the realisation puts them."""
        if self.realisation.hint_slot != "prefix":
            return prompt(text, num_hints=num_hints)
        bare = prompt(text)
        places = (self.tokenizer.image_id,) * num_hints
        return Prompt((*places, *bare.ids), (False,) * num_hints + bare.caption)

    def _corruption(
        self, supervision: Supervision, sigmas: Tensor, plain: Sequence[bool], latents: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Return the cells that bear the loss, [B, M] or None for all, and the noise level of samples or cells."""
        corruption = self.model.config.corruption
        masked, target = supervision.masked, supervision.target
        if masked is None or (corruption == "native" and target is None):
            return None, sigmas
        whole = torch.tensor(plain, device=self.device).unsqueeze(1)
        weights = (masked if target is None else target).to(self.device) | whole
        if corruption != "clean_context":
            return weights, sigmas
        noisy = masked.to(self.device) | whole
        return weights, (sigmas.unsqueeze(1) * noisy).view(len(sigmas), 1, *latents.shape[2:])

    def conditions(
        self, prompts: Sequence[Prompt], visual: Tensor | None = None, *, item_ids: Sequence[str] = ()
    ) -> Tensor:
        """Return what the generator attends to, [B, Q, caption channels].

        Args:
            prompts: B prompts.
            visual: [places, D] visual embeddings of all prompts, in order; None where no prompt has any.
            item_ids: B ids of items, whose captions may have been read beforehand; empty where prompts are others.
        """
        known = [self._known(*pair) for pair in zip(prompts, item_ids, strict=True)] if item_ids else []
        if not any(prefix is not None for prefix in known):
            return self._conditions(self._read(prompts, visual))
        new = [prompt for prompt, prefix in zip(prompts, known, strict=True) if prefix is None]
        rest = iter(self._read(new, visual).apart() if new else ())
        return self._conditions(Prefix.joined([next(rest) if prefix is None else prefix for prefix in known]))

    def _conditions(self, prefix: Prefix) -> Tensor:
        return self.model.condition(self.model.query(prefix))

    def _known(self, prompt: Prompt, item_id: str) -> Tensor | None:
        """Return a prompt's keys and values where they were computed beforehand; the empty prompt's, once."""
        kept = self._kept(item_id)
        if kept is None or "prompt" not in kept:
            return None
        if self._empty is None:
            empty = self.tokenizer.no_caption()
            self._empty = (empty, self._read([empty]).apart()[0])
        if prompt == self._empty[0]:
            return self._empty[1].to(self.device)
        is_same = tuple(kept["prompt"].tolist()) == prompt.ids
        return kept["prefix"].to(self.device) if is_same else None

    def _read(self, prompts: Sequence[Prompt], visual: Tensor | None = None) -> Prefix:
        """Let the language model read prompts; arguments as `conditions`."""
        padded = self.tokenizer.pad(prompts, device=self.device)
        rows, hints = self.model.embed_ids(padded.ids), None
        if visual is not None:
            places = padded.ids == self.tokenizer.image_id
            rows = rows.masked_scatter(places.unsqueeze(-1), visual.to(rows.dtype))
            both_ways = self.realisation.attention == "paper" and self.model.config.hint_attention == "bidirectional"
            hints = places if both_ways else None
        return self.model.read(rows, padded.valid, hints=hints)

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of all answers, a scalar.

        The language model is frozen, so the loss has a gradient only while its parts are pretrained.

        Raises:
            ValueError: If the length limit leaves no token of an answer.
        """
        config = self.model.config
        num_tokens = config.vision.grid[0] * config.vision.grid[1]
        dialogues = [
            self.tokenizer.dialogue(turns, num_image_tokens=num_tokens, limit=config.max_dialogue_tokens)
            for turns in batch.dialogues
        ]
        seen = self.model.see(batch.images.to(self.device)).flatten(0, 1)
        return answering.next_token_loss(self.model, seen, dialogues, image_id=self.tokenizer.image_id)

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
    ) -> Iterator[Image]:
        """Yield one image per prompt; see `sampling.draw`."""
        return sampling.draw(self, prompts, seeds=seeds, settings=settings)

    def redraw(
        self, images: Sequence[Image], requests: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
    ) -> Iterator[Image]:
        """Yield each image drawn anew as its request says; see `sampling.redraw`."""
        return sampling.redraw(self, images, requests, seeds=seeds, settings=settings)

    def answer(self, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Answer each question about its images by greedy decoding.

        Raises:
            ValueError: If a question is about no image.
        """
        return answering.answer(self, images, questions, max_new_tokens=max_new_tokens)

    def choice_logprobs(
        self, images: Sequence[Sequence[Image]], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each choice's first token as the first token of the answer.

        Raises:
            ValueError: If a question is about no image, or a choice has no token.
        """
        return answering.choice_logprobs(self, images, questions, choices)

    def image_transform(self, purpose: Literal["generation", "understanding"]) -> ImageTransform:
        """Return the preparation of images: a random square crop for drawing, one tile for understanding."""
        if purpose == "generation":
            return CropToSquare(self.card.image_size_px)
        return ResizeToSquare(self.model.config.vision.image_size_px)

    def parameter_groups(self) -> ParameterGroups:
        """Return the trainable parameters; those of one dimension are not decayed.

        Source: wusize/OpenUni configs/finetune @ d1703fc
        """
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                groups[parameter.dim() > 1].append(parameter)
        return ParameterGroups(decayed=tuple(groups[True]), not_decayed=tuple(groups[False]))

    def realise(self, realisation: Realisation) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""
        self.realisation = realisation

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a checkpoint: `config.json`, `model.safetensors`, `tokenizer.json`.

        What is frozen is written only where no repository publishes it.

        Args:
            directory: Created when absent.
            dtype: Type of the weights on disk.
        """
        write_checkpoint(
            directory,
            self.model,
            card=self.card,
            tokenizer=self.tokenizer,
            realisation=self.realisation,
            dtype=dtype,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return what is trained under upstream's key names, the form in which OpenUni's own files are."""
        return {key: value for key, value in upstream_names(self.model.state_dict()).items() if not is_frozen(key)}

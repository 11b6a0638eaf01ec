"""OpenUni behind the project's contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from segros_train.backbone import Backbone, Conditioning, Encoded, ImageTransform, ParameterGroups
from segros_train.backbones.common.images import CropToSquare, to_pixels
from segros_train.backbones.common.instructions import instructions_from
from segros_train.backbones.openuni import answering, sampling
from segros_train.backbones.openuni.flow import NUM_TRAINING_STEPS, add_noise, masked_velocity_error, timesteps_of
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.pretrained import write_checkpoint
from segros_train.backbones.openuni.prompts import OpenUniTokenizer, Prompt
from segros_train.backbones.openuni.state_dict import is_frozen, upstream_names
from segros_train.types import Embeddings, GenerationBatch, GenerationSettings, InstructionBatch, Supervision

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.draws import Draws
    from segros_train.types import BackboneCard, Checkpointing, Grid

__all__ = ["OpenUni", "ResizeToSquare"]


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
        conditioning: Conditioning | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            card: What the model realises.
            model: Modules and weights.
            tokenizer: The language model's.
            conditioning: Choices to follow.

        Raises:
            PrerequisiteError: If the configuration's file of instructions cannot be read.
        """
        super().__init__()
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self.conditioning = conditioning or Conditioning()
        self.instructions = instructions_from(model.config.instructions_file)

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

    def encode(self, batch: GenerationBatch) -> Encoded:
        """Offer `latents` [B, C, h, w], visual embeddings `seen` [B, N, D], and the captions' `prompts`."""
        return Encoded(
            batch,
            frozen={
                "latents": lambda images: self.model.encode_images(images.to(self.device)),
                "seen": lambda images: self.model.see(images.to(self.device)),
            },
            derived={"prompts": lambda _: [self._caption(caption) for caption in batch.captions]},
        )

    @torch.no_grad()
    def embed(self, encoded: Encoded) -> Embeddings:
        """Return caption rows of the embedding table and the visual embeddings, both before the language model."""
        prompts = self.tokenizer.pad(encoded["prompts"], device=self.device)
        grids = self.grids(encoded.batch)
        return Embeddings(self.model.embed_ids(prompts.ids), prompts.caption, encoded["seen"], *grids)

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

    def masking_ratio(self, draws: Draws) -> None:
        """Return None: the generator masks nothing."""

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        """Return the flow loss of the target cells, each sample's mean counting alike, a scalar.

        Raises:
            ValueError: If neither a caption nor hints condition the image.
        """
        if supervision.hints is None and not supervision.caption:
            raise ValueError("OpenUni needs a caption or hints.")
        latents = encoded["latents"].float()
        prompts, plain = self._prompts(encoded, supervision, draws)
        visual = None
        if supervision.hints is not None and not all(plain):
            kept = torch.tensor([row for row, is_plain in enumerate(plain) if not is_plain], device=self.device)
            hints = supervision.hints.to(self.device)[kept].unsqueeze(-1)
            seen = encoded["seen"][kept]
            visual = seen.gather(1, hints.expand(-1, -1, seen.shape[2])).flatten(0, 1)
        conditions = self.conditions(prompts, visual)
        noise = draws.normal("noise", *latents.shape[1:]).to(self.device)
        timesteps = timesteps_of(draws.uniform("timesteps")).to(self.device)
        weights, sigmas = self._corruption(supervision, timesteps / NUM_TRAINING_STEPS, plain, latents)
        velocity = self.model.velocity(add_noise(latents, noise, sigmas), conditions, timesteps)
        return masked_velocity_error(velocity, latents, noise, weights)

    def _prompts(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> tuple[list[Prompt], list[bool]]:
        """Tokenise what conditions each image, and tell which samples are shown no hint and take the whole loss."""
        num_hints = 0 if supervision.hints is None else supervision.hints.shape[1]
        if not supervision.caption:
            picks = draws.below("instruction", len(self.instructions))
            rows = [self._with_hints(self.tokenizer.request, self.instructions[pick], num_hints) for pick in picks]
            return rows, [False] * len(rows)
        dropped = (draws.uniform("caption drop") < self.conditioning.text_dropout).tolist()
        rows, plain = [], []
        for caption, prompt, drop in zip(encoded.batch.captions, encoded["prompts"], dropped, strict=True):
            bare = self.tokenizer.no_caption() if drop else prompt
            is_plain = drop or sum(bare.caption) < 2
            plain.append(is_plain)
            rows.append(bare if is_plain or not num_hints else self._with_hints(self._caption, caption, num_hints))
        return rows, plain

    def _with_hints(self, prompt: Callable[..., Prompt], text: str, num_hints: int) -> Prompt:
        """Tokenise a prompt with places for hints where the conditioning puts them."""
        if self.conditioning.hint_slot != "prefix":
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

    def conditions(self, prompts: Sequence[Prompt], visual: Tensor | None = None) -> Tensor:
        """Return what the generator attends to, [B, Q, caption channels].

        Args:
            prompts: B prompts.
            visual: [places, D] visual embeddings of all prompts, in order; None where no prompt has any.
        """
        padded = self.tokenizer.pad(prompts, device=self.device)
        rows, hints = self.model.embed_ids(padded.ids), None
        if visual is not None:
            places = padded.ids == self.tokenizer.image_id
            rows = rows.masked_scatter(places.unsqueeze(-1), visual.to(rows.dtype))
            both_ways = self.conditioning.attention == "paper" and self.model.config.hint_attention == "bidirectional"
            hints = places if both_ways else None
        return self.model.condition(self.model.query(self.model.read(rows, padded.valid, hints=hints)))

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

    def configure(self, conditioning: Conditioning) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""
        self.conditioning = conditioning

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
            conditioning=self.conditioning,
            dtype=dtype,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return what is trained under upstream's key names, the form in which OpenUni's own files are."""
        return {key: value for key, value in upstream_names(self.model.state_dict()).items() if not is_frozen(key)}

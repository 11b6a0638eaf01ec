"""Harmon behind the project's contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from segros_train.backbone import Backbone, ImageTransform, ParameterGroups, Realisation
from segros_train.backbones.common.answering import answer, choice_logprobs
from segros_train.backbones.common.dialogues import labels_of
from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.backbones.common.modes import evaluating
from segros_train.backbones.common.pretrained import write_checkpoint
from segros_train.backbones.common.texts import Prompts
from segros_train.backbones.harmon import sampling
from segros_train.backbones.harmon.answering import next_token_loss, read, reader
from segros_train.backbones.harmon.diffusion import draw_timesteps
from segros_train.backbones.harmon.mar import gather_rows
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.backbones.harmon.prompts import NO_CAPTION, HarmonTokenizer
from segros_train.backbones.harmon.state_dict import untied_state
from segros_train.backbones.harmon.transforms import CropToSquare, PadToSquare
from segros_train.masking import truncated_normal_ratio
from segros_train.types import Embeddings, GenerationBatch, GenerationSettings, InstructionBatch, Supervision

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.types import BackboneCard, Checkpointing, Grid

__all__ = ["Harmon", "visible_indices"]


def visible_indices(masked: Tensor) -> Tensor:
    """Return ascending indices [B, V] of the cells that `masked` [B, N] leaves visible.

    Raises:
        ValueError: If samples have different numbers of them.
    """
    counts = (~masked).sum(dim=1).tolist()
    if len(set(counts)) != 1:
        raise ValueError(f"Harmon needs equally many visible cells in all samples, found {counts}.")
    return masked.long().argsort(dim=1, stable=True)[:, : counts[0]]


class Harmon(Backbone):
    """Realise any supervision with Harmon's masked encoder, language model, decoder and diffusion head.

    Captions condition the image as upstream trains it. Hints are encodings of the whole image in front of the
    language model, with the gradient scaled as in its understanding path.
    """

    def __init__(
        self,
        card: BackboneCard,
        model: HarmonModel,
        tokenizer: HarmonTokenizer,
        *,
        realisation: Realisation | None = None,
        instructions: Sequence[str] = INSTRUCTIONS,
    ) -> None:
        """Wrap a model.

        Args:
            card: What the model realises.
            model: Modules and weights.
            tokenizer: The language model's.
            realisation: Choices to follow.
            instructions: Texts for samples without a caption.
        """
        super().__init__()
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self.realisation = realisation or Realisation()
        self.instructions = tuple(instructions)
        self._encoded: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.mar.mask_token.device

    def _latents(self, batch: GenerationBatch | InstructionBatch) -> Tensor:
        """Encode images, once for the `embed` and `t2i_loss` of a step: the autoencoder is frozen."""
        if self._encoded is None or self._encoded[0] is not batch.images:
            self._encoded = (batch.images, self.model.encode_images(batch.images.to(self.device)))
        return self._encoded[1]

    def _embed_ids(self, ids: Tensor) -> Tensor:
        return self.model.llm.model.embed_tokens(ids)

    @torch.no_grad()
    def embed(self, batch: GenerationBatch) -> Embeddings:
        """Return caption rows of the embedding table and encodings of the whole image, buffers left out.

        Dropout is off, so that a map does not depend on it.
        """
        latents = self._latents(batch)
        grid = (latents.shape[1], latents.shape[2])
        with evaluating(self.model):
            image = self.model.whole_image(latents)[:, : grid[0] * grid[1]]
        limit = self.model.config.max_caption_tokens
        rows = [self.tokenizer.caption(caption, limit=limit) for caption in batch.captions]
        prompts = self.tokenizer.pad(rows, device=self.device)
        return Embeddings(self._embed_ids(prompts.ids), prompts.caption, image, grid, grid)

    def grids(self, batch: GenerationBatch) -> tuple[Grid, Grid]:
        """Return the grid of latent cells, which is that of the visual embeddings too."""
        stride = self.model.config.vae.stride_px
        grid = (batch.images.shape[2] // stride, batch.images.shape[3] // stride)
        return grid, grid

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again; see `HarmonModel.set_checkpointing`."""
        self.model.set_checkpointing(checkpointing)

    def caption_tokens(self, caption: str) -> list[str]:
        """Return the text of each caption token, in the order of the valid places of `embed`'s text."""
        return self.tokenizer.caption_tokens(caption, limit=self.model.config.max_caption_tokens)

    def masking_ratio(self, size: int, rng: Generator) -> Tensor:
        """Draw one share of hidden cells for the whole batch, [size]."""
        uniform = torch.rand(1, generator=rng, device=rng.device, dtype=torch.float64)
        mar = self.model.config.mar
        ratio = truncated_normal_ratio(uniform, minimum=mar.mask_ratio_min, deviation=mar.mask_ratio_deviation)
        return ratio.float().expand(size)

    def t2i_loss(self, batch: GenerationBatch, supervision: Supervision, rng: Generator) -> Tensor:
        """Return the diffusion loss of the target cells, a scalar.

        Raises:
            ValueError: If nothing is masked, the target is empty, samples have different numbers of visible
                cells, or neither a caption nor hints condition the image.
        """
        if supervision.masked is None or (supervision.hints is None and not supervision.caption):
            raise ValueError("Harmon needs masked cells, and a caption or hints.")
        latents = self._latents(batch)
        masked = supervision.masked.to(self.device)
        target = masked if supervision.target is None else supervision.target.to(self.device)
        prompts = self._prompts(batch.captions, supervision, rng)
        slot = self.realisation.hint_slot or ("prefix" if supervision.caption else "user")
        conditions = self.model.conditions(
            self._embed_ids(prompts.ids),
            prompts.valid,
            latents,
            visible_indices(masked),
            attention=self.realisation.attention,
            hints=self._hints(latents, supervision),
            slot=0 if slot == "prefix" else len(self.tokenizer.head),
        )
        rows = target.flatten().nonzero().squeeze(1)
        if not len(rows):
            raise ValueError("The supervision has no target cell.")
        return self._diffusion_loss(conditions.flatten(0, 1)[rows], latents.flatten(0, 2)[rows], rng)

    def _hints(self, latents: Tensor, supervision: Supervision) -> Tensor | None:
        """Encode the hints [B, H, D]; a reconstruction from all of them sees the buffers as well, as RecA does."""
        if supervision.hints is None:
            return None
        whole = self.model.whole_image(latents)
        hints = supervision.hints.to(self.device)
        num_cells = latents.shape[1] * latents.shape[2]
        if not supervision.caption and hints.shape[1] == num_cells:
            return whole
        return gather_rows(whole, hints)

    def _prompts(self, captions: Sequence[str], supervision: Supervision, rng: Generator) -> Prompts:
        """Tokenise what conditions each image: its caption, an instruction, or, dropped out, neither."""
        size, limit = len(captions), self.model.config.max_caption_tokens
        dropped = (torch.rand(size, generator=rng, device=rng.device) < self.realisation.text_dropout).tolist()
        rows = [self.tokenizer.caption(caption, limit=limit) for caption in captions]
        if not supervision.caption:
            picks = torch.randint(len(self.instructions), (size,), generator=rng, device=rng.device).tolist()
            rows = [self.tokenizer.request("\n" + self.instructions[pick], limit=limit) for pick in picks]
        empty = self.tokenizer.request(NO_CAPTION, limit=limit)
        rows = [empty if drop else row for row, drop in zip(rows, dropped, strict=True)]
        return self.tokenizer.pad(rows, device=self.device)

    def _diffusion_loss(self, conditions: Tensor, cells: Tensor, rng: Generator) -> Tensor:
        """Return the mean loss over rows [R, ...], each at `batch_mul` timesteps drawn from `rng`."""
        timesteps = draw_timesteps(self.model.config.mar.diffusion, len(cells), rng)
        noise = torch.randn(*timesteps.shape, cells.shape[1], generator=rng, device=rng.device)
        return self.model.mar.diffloss.loss(
            conditions, cells, timesteps=timesteps.to(self.device), noise=noise.to(self.device)
        )

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of all answers, a scalar.

        Raises:
            ValueError: If the length limit leaves no token of an answer.
        """
        limit = self.model.config.max_dialogue_tokens
        dialogues = [self.tokenizer.dialogue(turns, limit=limit) for turns in batch.dialogues]
        image = self.model.whole_image(self._latents(batch))
        states = read(self.model, image, dialogues)
        return next_token_loss(self.model, states, labels_of(dialogues, image))

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
    ) -> Iterator[Image]:
        """Yield one image per prompt; see `sampling.draw`."""
        return sampling.draw(self, prompts, seeds=seeds, settings=settings)

    def answer(self, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Answer each question about its one image by greedy decoding.

        Raises:
            ValueError: If a question is not about exactly one image.
        """
        return answer(reader(self), images, questions, max_new_tokens=max_new_tokens)

    def choice_logprobs(
        self, images: Sequence[Sequence[Image]], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each choice's first token as the first token of the answer.

        Raises:
            ValueError: If a question is not about exactly one image, or a choice has no token.
        """
        return choice_logprobs(reader(self), images, questions, choices)

    def image_transform(self, purpose: Literal["generation", "understanding"]) -> ImageTransform:
        """Return the preparation of images: a random square crop for drawing, grey padding for understanding."""
        kind = CropToSquare if purpose == "generation" else PadToSquare
        return kind(self.card.image_size_px)

    def parameter_groups(self) -> ParameterGroups:
        """Return the trainable parameters; vectors, biases and the diffusion head are not decayed.

        Source: reconstruction-alignment Harmon, configs (paramwise settings)
        """
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                exempt = parameter.dim() == 1 or name.endswith(".bias") or "diffloss" in name
                groups[not exempt].append(parameter)
        return ParameterGroups(decayed=tuple(groups[True]), not_decayed=tuple(groups[False]))

    def realise(self, realisation: Realisation) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""
        self.realisation = realisation

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a checkpoint: `config.json`, `model.safetensors` with the autoencoder, `tokenizer.json`.

        Args:
            directory: Created when absent.
            dtype: Type of the weights on disk.
        """
        write_checkpoint(
            directory,
            untied_state(self.model),
            card=self.card,
            config=self.model.config,
            tokenizer=self.tokenizer.tokenizer,
            realisation=self.realisation,
            dtype=dtype,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return the weights under upstream's key names, the autoencoder's below `vae.`."""
        return self.model.state_dict()

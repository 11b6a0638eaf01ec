"""Harmon behind the project's contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from segros_train.backbone import Backbone, Conditioning, Encoded, ImageTransform, ParameterGroups
from segros_train.backbones.common.answering import answer, choice_logprobs
from segros_train.backbones.common.dialogues import labels_of
from segros_train.backbones.common.instructions import INSTRUCTIONS
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

    from segros_train.draws import Draws
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
        conditioning: Conditioning | None = None,
        instructions: Sequence[str] = INSTRUCTIONS,
    ) -> None:
        """Wrap a model.

        Args:
            card: What the model realises.
            model: Modules and weights.
            tokenizer: The language model's.
            conditioning: Choices to follow.
            instructions: Texts for samples without a caption.
        """
        super().__init__()
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self.conditioning = conditioning or Conditioning()
        self.instructions = tuple(instructions)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.mar.mask_token.device

    def encode(self, batch: GenerationBatch) -> Encoded:
        """Offer `latents` [B, h, w, C], `whole` image encodings [B, N + buffers, D] and the captions' `prompts`.

        The map and the hints of a step are taken from one encoding of the whole image.
        """
        limit = self.model.config.max_caption_tokens
        return Encoded(
            batch,
            frozen={"latents": lambda images: self.model.encode_images(images.to(self.device))},
            derived={
                "whole": lambda encoded: self.model.whole_image(encoded["latents"]),
                "prompts": lambda _: [self.tokenizer.caption(caption, limit=limit) for caption in batch.captions],
            },
        )

    def _embed_ids(self, ids: Tensor) -> Tensor:
        return self.model.llm.model.embed_tokens(ids)

    def embed(self, encoded: Encoded) -> Embeddings:
        """Return caption rows of the embedding table and encodings of the whole image, buffers left out."""
        grid, _ = self.grids(encoded.batch)
        image = encoded["whole"].detach()[:, : grid[0] * grid[1]]
        prompts = self.tokenizer.pad(encoded["prompts"], device=self.device)
        return Embeddings(self._embed_ids(prompts.ids).detach(), prompts.caption, image, grid, grid)

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

    def masking_ratio(self, draws: Draws) -> Tensor:
        """Draw one share of hidden cells for the whole micro-batch, [B]."""
        uniform = torch.rand(1, generator=draws.of_batch("masking ratio"), dtype=torch.float64)
        mar = self.model.config.mar
        ratio = truncated_normal_ratio(uniform, minimum=mar.mask_ratio_min, deviation=mar.mask_ratio_deviation)
        return ratio.float().expand(len(draws))

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        """Return the diffusion loss of the target cells, a scalar.

        Raises:
            ValueError: If nothing is masked, the target is empty, samples have different numbers of visible
                cells, or neither a caption nor hints condition the image.
        """
        if supervision.masked is None or (supervision.hints is None and not supervision.caption):
            raise ValueError("Harmon needs masked cells, and a caption or hints.")
        latents = encoded["latents"]
        masked = supervision.masked.to(self.device)
        target = masked if supervision.target is None else supervision.target.to(self.device)
        prompts = self._prompts(encoded, supervision, draws)
        slot = self.conditioning.hint_slot or ("prefix" if supervision.caption else "user")
        conditions = self.model.conditions(
            self._embed_ids(prompts.ids),
            prompts.valid,
            latents,
            visible_indices(masked),
            attention=self.conditioning.attention,
            hints=self._hints(encoded, supervision),
            slot=0 if slot == "prefix" else len(self.tokenizer.head),
        )
        rows = target.flatten().nonzero().squeeze(1)
        if not len(rows):
            raise ValueError("The supervision has no target cell.")
        timesteps, noise = self._noise(draws, latents, rows)
        return self.model.mar.diffloss.loss(
            conditions.flatten(0, 1)[rows], latents.flatten(0, 2)[rows], timesteps=timesteps, noise=noise
        )

    def _noise(self, draws: Draws, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return `batch_mul` timesteps [K, R] and the noise [K, R, C] of the target cells `rows` of latents."""
        config, (_, height, width, channels) = self.model.config.mar.diffusion, latents.shape
        num_cells, repeats, rows = height * width, config.batch_mul, rows.cpu()
        timesteps = draws.of_items("timesteps", lambda rng: draw_timesteps(config, num_cells, rng).T)
        noise = draws.normal("noise", num_cells, repeats, channels)
        kept = (drawn.flatten(0, 1)[rows].to(self.device).transpose(0, 1) for drawn in (timesteps, noise))
        return next(kept), next(kept)

    def _hints(self, encoded: Encoded, supervision: Supervision) -> Tensor | None:
        """Encode the hints [B, H, D]; a reconstruction from all of them sees the buffers as well, as RecA does."""
        if supervision.hints is None:
            return None
        whole, hints = encoded["whole"], supervision.hints.to(self.device)
        if not supervision.caption and hints.shape[1] == whole.shape[1] - self.model.config.mar.buffer_size:
            return whole
        return gather_rows(whole, hints)

    def _prompts(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Prompts:
        """Tokenise what conditions each image: its caption, an instruction, or, dropped out, neither."""
        limit = self.model.config.max_caption_tokens
        if supervision.caption:
            rows = encoded["prompts"]
        else:
            picks = draws.below("instruction", len(self.instructions))
            rows = [self.tokenizer.request("\n" + self.instructions[pick], limit=limit) for pick in picks]
        empty = self.tokenizer.request(NO_CAPTION, limit=limit)
        dropped = (draws.uniform("caption drop") < self.conditioning.text_dropout).tolist()
        rows = [empty if drop else row for row, drop in zip(rows, dropped, strict=True)]
        return self.tokenizer.pad(rows, device=self.device)

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of all answers, a scalar.

        Raises:
            ValueError: If the length limit leaves no token of an answer.
        """
        limit = self.model.config.max_dialogue_tokens
        dialogues = [self.tokenizer.dialogue(turns, limit=limit) for turns in batch.dialogues]
        image = self.model.whole_image(self.model.encode_images(batch.images.to(self.device)))
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

    def configure(self, conditioning: Conditioning) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""
        self.conditioning = conditioning

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
            conditioning=self.conditioning,
            dtype=dtype,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return the weights under upstream's key names, the autoencoder's below `vae.`."""
        return self.model.state_dict()

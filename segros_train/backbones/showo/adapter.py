"""Show-o behind the project's contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segros_train.backbone import Backbone, Conditioning, Encoded, ImageTransform, ParameterGroups
from segros_train.backbones.common.answering import answer, choice_logprobs, supervised_places
from segros_train.backbones.common.dialogues import IGNORED, labels_of
from segros_train.backbones.common.instructions import instructions_from
from segros_train.backbones.common.pretrained import write_checkpoint
from segros_train.backbones.common.texts import Prompt
from segros_train.backbones.showo import sampling
from segros_train.backbones.showo.answering import read, reader
from segros_train.backbones.showo.layout import drawing_layout
from segros_train.backbones.showo.model import ShowoModel
from segros_train.backbones.showo.prompts import ShowoTokenizer
from segros_train.backbones.showo.state_dict import published_names
from segros_train.backbones.showo.transforms import CropForClip, CropToSquare
from segros_train.equations import corrupted_latents
from segros_train.masking import cosine_ratio
from segros_train.types import Embeddings, GenerationBatch, GenerationSettings, InstructionBatch, Supervision

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.draws import Draws
    from segros_train.types import BackboneCard, Checkpointing, Grid

__all__ = ["Showo"]

BLUR = 8


class Showo(Backbone):
    """Realise any supervision with Show-o's language model over text and image codes.

    Captions condition the image as upstream trains it. Hints are what upstream reads of an image: projected patches of
    the vision tower, or, without one, codes of a smaller or blurred image, since codes of the image itself would be
    copied. Their gradient reaches the projector; tower and tokenizer of images are frozen.
    """

    def __init__(
        self,
        card: BackboneCard,
        model: ShowoModel,
        tokenizer: ShowoTokenizer,
        *,
        conditioning: Conditioning | None = None,
        instructions: Sequence[str] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            card: What the model realises.
            model: Modules and weights.
            tokenizer: The language model's.
            conditioning: Choices to follow.
            instructions: Texts for samples without a caption; None takes the configuration's.

        Raises:
            PrerequisiteError: If the configuration's file of instructions cannot be read.
        """
        super().__init__()
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self.conditioning = conditioning or Conditioning()
        own = instructions_from(model.config.instructions_file)
        self.instructions = tuple(own if instructions is None else instructions)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again: the language model's blocks, beside which little is kept."""
        self.model.checkpointing = checkpointing

    @property
    def has_tower(self) -> bool:
        """Whether a vision tower reads images; otherwise codes are read."""
        return self.model.config.clip is not None

    def _grid(self, batch: GenerationBatch) -> Grid:
        stride = self.model.config.vq.stride_px
        return (batch.images.shape[2] // stride, batch.images.shape[3] // stride)

    def _read(self, images: Tensor) -> Tensor:
        """Return what frozen parts read of images: patches of the tower [B, I, width], or codes [B, I]."""
        return self.model.clip_features(images) if self.has_tower else self.model.encode_images(images).flatten(1)

    def _inputs(self, read: Tensor) -> Tensor:
        if self.has_tower:
            return self.model.mm_projector(read)
        return self.model.embed(read + self.model.config.image_offset)

    def image_inputs(self, images: Tensor) -> Tensor:
        """Return how the language model reads images [B, 3, h, w]: projected patches or embedded codes, [B, I, D]."""
        return self._inputs(self._read(images))

    def grids(self, batch: GenerationBatch) -> tuple[Grid, Grid]:
        """Return the grids of what hints are taken from and of the image's codes."""
        cells, clip = self._grid(batch), self.model.config.clip
        if clip is not None:
            return (clip.side, clip.side), cells
        is_half = self.model.config.code_hints == "half"
        return ((cells[0] // 2, cells[1] // 2) if is_half else cells), cells

    def encode(self, batch: GenerationBatch) -> Encoded:
        """Offer `codes` [B, M], what is `read` for hints, its `visual` embeddings [B, N, D], and `prompts`."""
        limit = self.model.config.max_caption_tokens + 1
        return Encoded(
            batch,
            frozen={
                "codes": lambda images: self.model.encode_images(images.to(self.device)).flatten(1),
                "read": lambda images: self._read(self._for_hints(images.to(self.device))),
            },
            derived={
                "visual": lambda encoded: self._inputs(encoded["read"]),
                "prompts": lambda _: [self.tokenizer.caption(caption, limit=limit) for caption in batch.captions],
            },
        )

    def _for_hints(self, images: Tensor) -> Tensor:
        """Return what hints are read from: the images, or where codes are read smaller or blurred ones."""
        if self.has_tower:
            return images
        shrink = 2 if self.model.config.code_hints == "half" else BLUR
        size = (images.shape[2], images.shape[3])
        smaller = F.interpolate(
            images, (size[0] // shrink, size[1] // shrink), mode="bilinear", antialias=True, align_corners=False
        )
        if self.model.config.code_hints == "blur8":
            smaller = F.interpolate(smaller, size, mode="bilinear", align_corners=False)
        return smaller

    def embed(self, encoded: Encoded) -> Embeddings:
        """Return caption rows of the embedding table and what hints are taken from."""
        captions = [tuple(compress(prompt.ids, prompt.caption)) for prompt in encoded["prompts"]]
        rows = self.tokenizer.pad([Prompt(ids, (True,) * len(ids)) for ids in captions], device=self.device)
        text, image = self.model.embed(rows.ids).detach(), encoded["visual"].detach()
        return Embeddings(text.float(), rows.valid, image.float(), *self.grids(encoded.batch))

    def caption_tokens(self, caption: str) -> list[str]:
        """Return the text of each caption token, in the order of the valid places of `embed`'s text."""
        return self.tokenizer.caption_tokens(caption, limit=self.model.config.max_caption_tokens + 1)

    def masking_ratio(self, draws: Draws) -> Tensor:
        """Draw [B] shares that are whole numbers of cells, for upstream rounds where methods take the ceiling."""
        num_cells = (self.card.image_size_px // self.model.config.vq.stride_px) ** 2
        ratio = cosine_ratio(draws.uniform("masking ratio")).clamp(min=self.model.config.min_masking_ratio)
        return sampling.num_hidden(ratio, num_cells).double() / num_cells

    def t2i_loss(self, encoded: Encoded, supervision: Supervision, draws: Draws) -> Tensor:
        """Return the cross-entropy of the target cells' codes over all ids, a scalar.

        Raises:
            ValueError: If nothing is masked, the target is empty, or neither a caption nor hints condition the image.
        """
        if supervision.masked is None or (supervision.hints is None and not supervision.caption):
            raise ValueError("Show-o needs masked cells, and a caption or hints.")
        masked = supervision.masked.to(self.device)
        target = masked if supervision.target is None else supervision.target.to(self.device)
        if not bool(target.any()):
            raise ValueError("The supervision has no target cell.")
        ids = encoded["codes"] + self.model.config.image_offset
        special = self.tokenizer.special
        borders = (torch.full_like(ids[:, :1], special["soi"]), torch.full_like(ids[:, :1], special["eoi"]))
        image = torch.cat([borders[0], corrupted_latents(ids, masked, self.model.config.mask_id), borders[1]], dim=1)
        states = self._states(encoded, supervision, image, draws)
        labels = ids.masked_fill(~target, IGNORED)
        # Show-o's own loss, Eq. (15), counts the two tokens at the image's borders beside the cells.
        edges = borders if self.model.config.boundary_targets else (torch.full_like(borders[0], IGNORED),) * 2
        labels = torch.cat([edges[0], labels, edges[1]], dim=1)
        return self.model.nll(states, labels)

    def _states(self, encoded: Encoded, supervision: Supervision, image: Tensor, draws: Draws) -> Tensor:
        """Return the last states of the image block, [B, N + 2, D] of its ids [B, N + 2]."""
        limit = self.model.config.max_caption_tokens + 1
        if supervision.caption:
            rows = [list(prompt.ids) for prompt in encoded["prompts"]]
        else:
            picks = draws.below("instruction", len(self.instructions))
            texts = [f"USER: \n {self.instructions[pick]} ASSISTANT:" for pick in picks]
            rows = [self.tokenizer.request(text, limit=limit) for text in texts]
        dropped = draws.uniform("caption drop") < self.conditioning.text_dropout
        empty = self.tokenizer.request("", limit=limit)
        rows = [empty if drop else row for row, drop in zip(rows, dropped.tolist(), strict=True)]
        width = max(map(len, rows))
        pad = self.tokenizer.special["pad"]
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.device)
        hints = self._hints(encoded, supervision)
        layout = drawing_layout(
            ids != pad,
            image.shape[1],
            num_hints=0 if hints is None else hints.shape[1],
            with_hints=~dropped.to(self.device) if self.model.config.drop_hints_with_text else None,
            slot=self.conditioning.hint_slot or ("prefix" if supervision.caption else "user"),
            offset=limit - width,
        )
        parts = ([] if hints is None else [hints]) + [self.model.embed(torch.cat([ids, image], dim=1))]
        attention = self.conditioning.attention
        rows_see = layout.blocks(attention)
        states = self.model.hidden(
            torch.cat(parts, dim=1),
            layout.positions,
            mask=layout.mask(attention) if rows_see is None else None,
            blocks=rows_see,
        )
        return states[:, layout.image_start :]

    def _hints(self, encoded: Encoded, supervision: Supervision) -> Tensor | None:
        """Return the hint block with its two tokens, [B, H + 2, D]."""
        if supervision.hints is None:
            return None
        source = encoded["visual"]
        index = supervision.hints.to(self.device).unsqueeze(-1).expand(-1, -1, source.shape[-1])
        ends = torch.tensor([self.tokenizer.special["soi"], self.tokenizer.special["eoi"]], device=self.device)
        first, last = self.model.embed(ends).expand(len(source), 2, -1).split(1, dim=1)
        return torch.cat([first, source.gather(1, index).to(first.dtype), last], dim=1)

    def i2t_loss(self, batch: InstructionBatch) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of all answers, a scalar.

        Raises:
            ValueError: If the length limit leaves no token of an answer.
        """
        limit = self.model.config.max_dialogue_tokens
        dialogues = [self.tokenizer.dialogue(turns, tower=self.has_tower, limit=limit) for turns in batch.dialogues]
        image = self.image_inputs(batch.images.to(self.device))
        states = read(self.model, image, dialogues, everything=not self.has_tower)
        labels = labels_of(dialogues, image)
        supervised_places(labels)
        return self.model.next_token_nll(states, labels)

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
        """Return the preparation of images: the middle square, in the size of the tokenizer or of the tower."""
        clip = self.model.config.clip
        if purpose == "understanding" and clip is not None:
            return CropForClip(clip.image_size_px)
        return CropToSquare(self.card.image_size_px)

    def parameter_groups(self) -> ParameterGroups:
        """Return the trainable parameters; biases alone are not decayed.

        Source: showlab/Show-o training/train.py @ 45a5a2de (its list of exceptions matches nothing else)
        """
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[not name.endswith("bias")].append(parameter)
        return ParameterGroups(decayed=tuple(groups[True]), not_decayed=tuple(groups[False]))

    def configure(self, conditioning: Conditioning) -> None:
        """Adopt choices that training and sampling follow and checkpoints record."""
        self.conditioning = conditioning

    def save_pretrained(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a checkpoint: `config.json`, `model.safetensors` with all parts, `tokenizer.json`.

        Args:
            directory: Created when absent.
            dtype: Type of the weights on disk.
        """
        write_checkpoint(
            directory,
            published_names(self.model.state_dict()),
            card=self.card,
            config=self.model.config,
            tokenizer=self.tokenizer.tokenizer,
            conditioning=self.conditioning,
            dtype=dtype,
        )

    def upstream_state(self) -> dict[str, Tensor]:
        """Return the weights under upstream's key names, those of its three files together."""
        return published_names(self.model.state_dict())

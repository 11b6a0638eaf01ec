"""The values that pass between data, methods, backbones and the loop.

Shape letters, used in every docstring of the project:

| letter | meaning |
|---|---|
| B | batch |
| L | text tokens |
| N | visual embeddings, in raster order of `image_grid` |
| M | latent cells, in raster order of `latent_grid` |
| H | hints |
| D | width of the embeddings the language model reads |

This module imports no torch, so that declarations (`tasks/`) and `segros list` stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from segros_train.draws import Draws


__all__ = [
    "BackboneCard",
    "Checkpointing",
    "Crop",
    "DataCard",
    "Embeddings",
    "GenerationBatch",
    "GenerationSettings",
    "InstructionBatch",
    "Recipe",
    "Supervision",
    "Turn",
    "WeightFile",
]

Grid = tuple[int, int]
Checkpointing = Literal["none", "blocks", "all"]
Crop = Literal["random", "fixed"]


def _at_least(owner: object, least: int, *names: str) -> None:
    """Raise ValueError for a number below `least`; None stands for a default and passes."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, found {value}.")


@dataclass(frozen=True)
class GenerationBatch:
    """Images with captions, for the text-to-image loss.

    Attributes:
        images: [B, 3, height, width] float32 in [-1, 1].
        captions: B captions, as written in the data set.
        item_ids: B ids, unique in the data set; named when a loss is not finite.
        draws: What is drawn in training on it; None where it is only looked at.
        latents: What frozen parts made of each image beforehand, None of those without; empty where no latent cache
            is read.
    """

    images: Tensor
    captions: tuple[str, ...]
    item_ids: tuple[str, ...]
    draws: Draws | None = None
    latents: tuple[Mapping[str, Tensor] | None, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One question and its answer about the image of a dialogue."""

    question: str
    answer: str


@dataclass(frozen=True)
class InstructionBatch:
    """Images with dialogues, for the image-to-text loss.

    Attributes:
        images: [B, 3, height, width] float32 in [-1, 1].
        dialogues: B dialogues of at least one turn.
        item_ids: B ids, unique in the data set.
    """

    images: Tensor
    dialogues: tuple[tuple[Turn, ...], ...]
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class Embeddings:
    """What a method sees: text and image embeddings before the unified model, without gradient.

    Attributes:
        text: [B, L, D] rows of the embedding table for the caption.
        text_valid: [B, L] bool, True on caption tokens; False on special tokens, template and padding.
        image: [B, N, D] visual embeddings.
        image_grid: Rows and columns of the N visual embeddings.
        latent_grid: Rows and columns of the M latent cells.
    """

    text: Tensor
    text_valid: Tensor
    image: Tensor
    image_grid: Grid
    latent_grid: Grid

    def __post_init__(self) -> None:
        num_image = self.image_grid[0] * self.image_grid[1]
        if self.text.shape[:2] != self.text_valid.shape:
            raise ValueError(f"text {tuple(self.text.shape)} and text_valid {tuple(self.text_valid.shape)} disagree.")
        if self.image.shape[1] != num_image:
            raise ValueError(f"image holds {self.image.shape[1]} embeddings, its grid {self.image_grid} {num_image}.")

    @classmethod
    def of_no_width(cls, size: int, *, image_grid: Grid, latent_grid: Grid, device: torch.device) -> Embeddings:
        """Return embeddings with D = 0 of `size` captions and images, for a method that reads their grids alone."""
        import torch

        text = torch.zeros(size, 0, 0, device=device)
        image = torch.zeros(size, image_grid[0] * image_grid[1], 0, device=device)
        return cls(text, torch.zeros(size, 0, dtype=torch.bool, device=device), image, image_grid, latent_grid)


@dataclass(frozen=True)
class Supervision:
    """What to show, what to hide and where to take the loss: the whole difference between methods.

    Attributes:
        caption: Whether the caption conditions the image (False: reconstruction from hints alone).
        hints: [B, H] long, indices of visual embeddings in [0, N), ascending; None for no hints.
        masked: [B, M] bool, True where a latent cell is hidden; None where the backbone masks nothing.
        target: [B, M] bool, True where the loss is taken, within `masked`; None for all of `masked`.
    """

    caption: bool
    hints: Tensor | None = None
    masked: Tensor | None = None
    target: Tensor | None = None

    def __post_init__(self) -> None:
        if self.hints is not None and (self.hints.dim() != 2 or self.hints.is_floating_point()):
            raise ValueError(f"hints must be [B, H] indices, found {tuple(self.hints.shape)} of {self.hints.dtype}.")
        if self.target is None:
            return
        if self.masked is None or self.target.shape != self.masked.shape:
            raise ValueError("target needs a masked tensor of its own shape.")

    def check(self, *, num_visual: int, num_cells: int) -> None:
        """Raise ValueError where an index is out of range or a target is not masked.

        Reads values, hence waits for the device: called by tests and once at the start of a run.

        Args:
            num_visual: N.
            num_cells: M.
        """
        if self.hints is not None and self.hints.numel():
            low, high = int(self.hints.min()), int(self.hints.max())
            if low < 0 or high >= num_visual:
                raise ValueError(f"hints lie in [{low}, {high}], the image has {num_visual} embeddings.")
        if self.masked is not None and self.masked.shape[1] != num_cells:
            raise ValueError(f"masked covers {self.masked.shape[1]} cells, the latent has {num_cells}.")
        if self.target is not None and self.masked is not None and bool((self.target & ~self.masked).any()):
            raise ValueError("target marks cells that are not masked.")


@dataclass(frozen=True)
class GenerationSettings:
    """How images are sampled.

    Attributes:
        num_steps: Number of iterations of the sampler.
        cfg_scale: Classifier-free guidance; 1.0 switches it off.
        cfg_schedule: How the guidance grows over the iterations.
        temperature: Scale of the sampling noise.
        batch_size: Images drawn at once, which changes speed only, never an image; None for what the device holds.
        options: Settings that only one family knows.
    """

    num_steps: int
    cfg_scale: float = 3.0
    cfg_schedule: Literal["constant", "linear"] = "constant"
    temperature: float = 1.0
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_steps", "batch_size")
        _at_least(self, 0, "cfg_scale", "temperature")


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Attributes:
        role: What it holds, a word the family knows (`"model"`, `"vae"`, `"llm"`, `"tokenizer"`).
        repo: Repository on the Hugging Face hub.
        filename: Path in the repository; None for the repository as a whole.
        sha256: Digest where one is known, whole; a file of another one is refused.
    """

    role: str
    repo: str
    filename: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class BackboneCard:
    """A unified multimodal model that can be trained and evaluated.

    Attributes:
        name: Name on the command line.
        family: Name of the family that realises it, which its checkpoints record.
        title: Name in tables, as the paper writes it.
        config: The family's frozen configuration.
        world: `"photo"`, or `"shapes"` for backbones of the embedded world.
        image_size_px: Side of the images it draws.
        settings: Default sampling settings.
        weights: Published files; empty for weights shipped with the package.
        recipe: Name of the default recipe.
        data: Name of the default training data.
        licence: Licence of the weights.
        understanding_is_frozen: Whether no method changes what it answers, so that its answers are judged once.
        notes: What a reader of the leaderboard should know (contamination, source of the weights).
    """

    name: str
    family: str
    title: str
    config: Any
    world: Literal["photo", "shapes"]
    image_size_px: int
    settings: GenerationSettings
    recipe: str
    data: str
    weights: tuple[WeightFile, ...] = ()
    licence: str = ""
    understanding_is_frozen: bool = False
    notes: str = ""


@dataclass(frozen=True)
class DataCard:
    """Training data.

    Attributes:
        name: Name on the command line.
        world: The world of its images.
        generation: Source of images with captions, e.g. `"hub:brivangl/midjourney-v6-llava"` or `"shapes"`.
        instruction: Source of images with dialogues; None where a recipe takes no i2t loss.
        revision: Pinned revision or digest.
        crop: Whether an image to draw is cropped anew each time it is seen, or alike each time; a latent cache, which
            holds one crop of each, serves `"fixed"` alone.
        notes: Known facts that change how a number reads (leakage, licence).
    """

    name: str
    world: Literal["photo", "shapes"]
    generation: str
    instruction: str | None = None
    revision: str | None = None
    crop: Crop = "random"
    notes: str = ""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; Table 7 of the paper.

    `micro_steps` counts forward and backward passes over one micro-batch per task in use;
    `optimizer_steps` counts updates. Both are recorded, because upstream "steps" mean one or the other.

    Attributes:
        optimizer_steps: Number of updates.
        accumulation: Micro-steps per update.
        batch_size: Samples of a generation micro-batch.
        learning_rate: Peak rate.
        warmup_steps: Updates of linear warm-up.
        schedule_steps: Updates after which the cosine reaches zero; training may stop earlier.
        weight_decay: AdamW's, on the parameters the backbone names as decayed.
        betas: AdamW's.
        clip_norm: Largest global gradient norm.
        i2t_weight: Weight of Eq. (13); 0.0 takes no i2t loss.
        i2t_batch_size: Samples of an instruction micro-batch; None for `batch_size`.
        text_dropout: Share of captions replaced by the empty condition.
        default_hint_ratio: Share of hints of SeGroS on this backbone, where neither the task nor an override says
            another; None is the paper's 0.3.
        precision: `"auto"` is bf16 autocast with fp32 master weights where the device has it.
        checkpointing: What is computed again in the backward pass instead of being kept: `"none"`, the `"blocks"` of
            trained transformers, or `"all"` that can be, the diffusion head's rows among it. Changes memory and speed
            only. None: the fastest that fits the device.
    """

    optimizer_steps: int
    batch_size: int
    accumulation: int = 1
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule_steps: int | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    i2t_weight: float = 1.0
    i2t_batch_size: int | None = None
    text_dropout: float = 0.1
    default_hint_ratio: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpointing: Checkpointing | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "optimizer_steps", "batch_size", "accumulation", "schedule_steps", "i2t_batch_size")
        _at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "clip_norm", "i2t_weight", "text_dropout")
        _at_least(self, 0, "default_hint_ratio")
        if self.text_dropout > 1:
            raise ValueError(f"text_dropout must be at most 1, found {self.text_dropout}.")

    @property
    def micro_steps(self) -> int:
        """Number of micro-steps of the whole run."""
        return self.optimizer_steps * self.accumulation

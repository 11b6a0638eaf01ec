"""Show-o: one language model over text, image codes and a mask, with a tokenizer of images and CLIP to read them.

What upstream does unexpectedly, and what becomes of it here:

| upstream | here |
|---|---|
| one id starts and ends a text | kept: `ShowoTokenizer.end_id` |
| pads on the left take up positions | kept as an offset of positions; the pads themselves are left out |
| the t2i loss counts the tokens around the codes | `ShowoConfig.boundary_targets`, off: RecA's loss has none |
| guidance g weighs 1 + g and -g | kept: `cfg_scale` is 1 + g |
| the temperature of hiding is multiplied on in every iteration | kept |
| the last iteration hides one cell again | kept in `Step.hidden_again`; the image holds every code |
| weight decay spares biases alone | kept |
| a latent of exactly zero is bit 0 | kept |
| pixels are cut, not rounded | kept |
| questions about codes carry `USER: \n` and a start token, training dialogues neither | kept |
| masks are filled with the least int64 as a float | bool masks, the same softmax; float16 would overflow |
| offsets are found by searching for ids, or taken from the first sample | known by construction |
| the mmu loss of no sample is that of the whole batch, the lm loss NaN | tasks never share a loss |
| `label_smoothing` is ignored | no such field |
| `gradient_checkpointing` is read by nothing | `Recipe.checkpointing` is |
| restarts lose optimizer and schedule | `segros_train.checkpoint` keeps both |
| weights are looked for as `pytorch_model.safetensors`, saved as `.bin` | both, and Hugging Face's names |

This package imports no torch until a model is built. Source: showlab/Show-o @ 45a5a2de
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.backbones.showo.weights import locate, missing_weights

if TYPE_CHECKING:
    from segros_train.backbones.precision import Precision
    from segros_train.backbones.showo.adapter import Showo
    from segros_train.types import BackboneCard

__all__ = ["fresh", "load", "missing_weights"]


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Showo:
    """Build a Show-o with its weights, in eval mode.

    Args:
        card: What to build.
        source: A checkpoint of ours, or a folder of published files; None for shipped weights, else the
            published files in `$SEGROS_HOME/weights/<name>/<role>` or the hub's cache.
        device: Torch device.
        precision: Of the weights; `"fp32"` to train them, see `backbones.load`.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged, or a file of instructions cannot be read.
    """
    from segros_train.backbones.checkpoints import read_checkpoint
    from segros_train.backbones.showo import states
    from segros_train.backbones.showo.adapter import Showo

    found = locate(card, source)
    found.require(card)
    if found.checkpoint is not None:
        read = partial(states.tokenizer_of, card.config)
        kept = read_checkpoint(found.checkpoint, card, function=states.FUNCTION, tokenizer=read)
        model = states.build(card.config, kept.state, origin=str(found.checkpoint), device=device, precision=precision)
        return Showo(card, model, kept.tokenizer, realisation=kept.realisation)
    tokenizer = states.tokenizer_of(card.config, found.files["tokenizer"])
    state = states.published_state(found.files)
    model = states.build(card.config, state, origin=str(found.files["model"]), device=device, precision=precision)
    return Showo(card, model, tokenizer)


def fresh(card: BackboneCard, *, tokenizer: Path, seed: int, device: str = "cpu") -> Showo:
    """Build a Show-o with random weights, to be pretrained.

    Args:
        card: What to build.
        tokenizer: A `tokenizer.json`.
        seed: Seed of the weights.
        device: Torch device.

    Raises:
        PrerequisiteError: If the tokenizer cannot be read.
    """
    import torch

    from segros_train.backbones.showo.adapter import Showo
    from segros_train.backbones.showo.model import ShowoModel, initialise
    from segros_train.backbones.showo.states import tokenizer_of

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ShowoModel(card.config)
    initialise(model, torch.Generator().manual_seed(seed))
    return Showo(card, model.to(device).eval(), tokenizer_of(card.config, tokenizer))

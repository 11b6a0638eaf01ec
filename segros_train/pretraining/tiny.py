"""What the pretraining of every tiny backbone starts from: a tokenizer of the world's texts, scenes, an autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from segros_train.data.shapes.world import Scene, render

__all__ = ["build_tokenizer", "pixels", "start_almost_linear"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


def build_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 768, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Train a byte-level BPE tokenizer, the kind Qwen2 has, whose words are those of `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return rendered scenes, [scenes, 3, height, width] in [-1, 1]."""
    painted = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def start_almost_linear(model: nn.Module) -> None:
    """Let an autoencoder start almost linear, from which training takes minutes, not hours.

    Residual branches begin at zero, other convolutions keep the scale of their input.

    Args:
        model: Changed in place; the last layers of its branches are named `conv2` and `proj_out`.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(module.weight)

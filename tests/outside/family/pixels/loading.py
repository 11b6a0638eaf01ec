"""Find the weights of a Pixels, and build it with them; no torch is imported before."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.backbones.common.weights import Located, locate_checkpoint

if TYPE_CHECKING:
    from segros_train.backbones.common.precision import Precision
    from segros_train.types import BackboneCard

    from .adapter import Pixels

WEIGHTS = Path(__file__).parent.parent / "weights"
"""A folder per card, as `save_pretrained` writes it."""


def locate(card: BackboneCard, source: Path | None = None) -> Located:
    """Find the weights of a card: those of a checkpoint, else those that lie beside the family."""
    found = locate_checkpoint(card, WEIGHTS / card.name if source is None else source)
    assert found is not None, "cards of this family have no published files"
    return found


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Pixels:
    """Build a Pixels with its weights, in eval mode; see `segros_train.backbones.loading`.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged.
    """
    from tokenizers import Tokenizer

    from segros_train.backbones.common.precision import WeightTypes
    from segros_train.backbones.common.pretrained import check_keys, read_checkpoint

    from .adapter import Pixels

    found = locate(card, source)
    found.require(card, source)
    assert found.checkpoint is not None
    kept = read_checkpoint(
        found.checkpoint,
        card,
        function=tuple(asdict(card.config)),
        tokenizer=lambda path: Tokenizer.from_file(str(path)),
    )
    model = Pixels(card, kept.tokenizer, conditioning=kept.conditioning)
    check_keys(model.state_dict(), kept.state, str(found.checkpoint), "Pixels")
    model.load_state_dict(kept.state)
    types = WeightTypes(model, precision, device=device, autoencoder="vision")
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(device, types[name])
    return model.eval()

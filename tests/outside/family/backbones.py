"""Backbones of a family of one's own: name them with `--tasks`."""

from dataclasses import replace

from segros_train.types import BackboneCard, GenerationSettings, Recipe

from .pixels.config import PixelsConfig

pixels = BackboneCard(
    name="pixels",
    family="pixels",
    title="Pixels",
    config=PixelsConfig(),
    world="shapes",
    image_size_px=32,
    settings=GenerationSettings(num_steps=1),
    recipe="pixels",
    data="shapes",
    licence="Apache-2.0",
)
pixels_photo = replace(pixels, name="pixels-photo", title="Pixels (photo)", world="photo", data="blip3o-60k")

RECIPES = {"pixels": Recipe(optimizer_steps=2, batch_size=2, learning_rate=1e-3)}

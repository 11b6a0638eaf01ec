"""One picture of what a method does to one captioned image: the paper's Figs. 2 and 3.

From left to right: the image as the backbone sees it, the grounding map over it, the visual hints, the corrupted
input. Above them the caption, token by token: kept tokens stand out, and the bar below each one is its importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from segros_train.draws import Draws
from segros_train.errors import PrerequisiteError
from segros_train.masking import indices_to_mask
from segros_train.methods.grounding import GroundingMap, GroundingOptions, grounding
from segros_train.types import GenerationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segros_train.backbone import Backbone
    from segros_train.method import Method
    from segros_train.types import Embeddings, Grid, Supervision

__all__ = ["caption_strip", "corrupted_panel", "explain", "heat_panel", "hints_panel", "render_explanation"]

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

PANEL_PX = 384
MARGIN_PX = 32
GAP_PX = 24
TITLE_PX = 20
NOTE_PX = 15
TOKEN_PX = 18
CHIP_PAD_PX = 8
LINE_PX = 46
BAR_PX = 4
HATCH_PX = 12

PAPER: Color = (255, 255, 255)
INK: Color = (28, 32, 40)
FAINT: Color = (120, 126, 138)
CHIP: Color = (238, 240, 244)
KEPT: Color = (196, 74, 28)
MASK: Color = (214, 217, 223)
HATCH: Color = (190, 194, 203)
TARGET: Color = (247, 218, 204)
TARGET_HATCH: Color = (232, 168, 138)
HEAT: tuple[Color, ...] = ((18, 14, 66), (98, 24, 122), (192, 56, 94), (243, 132, 52), (252, 232, 128))
HEAT_SHARE = 0.7
"""Share of the heat colour in the overlay; the rest is the image in grey."""


def explain(backbone: Backbone, image: Image.Image, caption: str, method: Method, *, seed: int = 0) -> Image.Image:
    """Draw what `method` makes of a captioned image on a backbone.

    Args:
        backbone: Gives the embeddings, the masking ratio and the tokens.
        image: RGB image, prepared as for training.
        caption: Its caption.
        method: A method with a grounding map.
        seed: Of the crop, the masking ratio and the noise of the map.

    Raises:
        PrerequisiteError: If the method has no grounding map, or the caption no token.
    """
    if not isinstance(method, GroundingOptions):
        raise PrerequisiteError(
            f"Cannot explain {type(method).__name__}: it has no grounding map. Choose a method that has one (segros)."
        )
    crop = backbone.image_transform("generation")(image.convert("RGB"), torch.Generator().manual_seed(seed))
    seen = backbone.embed(backbone.encode(GenerationBatch(crop.unsqueeze(0), (caption,), ("explain",))))
    if not seen.text_valid.any():
        raise PrerequisiteError(f"The caption {caption!r} has no token. Give a caption that says what the image shows.")
    draws = Draws(seed, 0, (0,))
    return render_explanation(
        _to_image(crop),
        backbone.caption_tokens(caption),
        seen=seen,
        ranking=grounding(seen, method, draws=draws),
        supervision=method.supervise(seen, backbone.masking_ratio(draws), draws),
        title=f"{type(method).__name__} on {backbone.card.title}",
    )


def render_explanation(
    image: Image.Image,
    caption_tokens: Sequence[str],
    *,
    seen: Embeddings,
    ranking: GroundingMap,
    supervision: Supervision,
    title: str = "",
) -> Image.Image:
    """Draw a supervision beside the grounding map it came from.

    Args:
        image: What the backbone sees, RGB.
        caption_tokens: Text of each caption token, in order.
        seen: Embeddings of a batch of one: grids and places of the caption's tokens.
        ranking: Grounding map of that batch.
        supervision: Supervision of that batch.
        title: First line of the picture.

    Raises:
        ValueError: If there are not as many texts as caption tokens.
    """
    valid = seen.text_valid[0]
    if len(caption_tokens) != int(valid.sum()):
        raise ValueError(f"{len(caption_tokens)} texts were given for {int(valid.sum())} caption tokens.")
    keep = ranking.keep[0][valid].tolist()
    importance = (ranking.importance[0][valid] / 2).tolist()
    panels = _panels(image.convert("RGB").resize((PANEL_PX, PANEL_PX)), seen, ranking, supervision)
    width = 2 * MARGIN_PX + len(panels) * PANEL_PX + (len(panels) - 1) * GAP_PX
    strip = caption_strip(caption_tokens, keep, importance=importance, width=width - 2 * MARGIN_PX)
    used = "" if supervision.caption else "; the method does not show the caption"
    note = f"Caption: {sum(keep)} of {len(keep)} tokens kept, bars show their importance{used}"
    return _compose(title, note, strip, panels)


@dataclass(frozen=True)
class _Panel:
    """A square picture with its title and a line of facts."""

    picture: Image.Image
    title: str
    note: str
    scale: bool = False


def _panels(
    image: Image.Image, seen: Embeddings, ranking: GroundingMap, supervision: Supervision
) -> tuple[_Panel, ...]:
    heat = _cells(ranking.normalised[0], seen.image_grid)
    height, width = seen.image_grid
    return (
        _Panel(image, "Image", "as the backbone sees it"),
        _Panel(heat_panel(image, heat), "Grounding map", f"{height} x {width} patches", scale=True),
        _hints(image, seen.image_grid, supervision),
        _corrupted(image, seen.latent_grid, supervision),
    )


def _hints(image: Image.Image, grid: Grid, supervision: Supervision) -> _Panel:
    num_patches = grid[0] * grid[1]
    if supervision.hints is None:
        shown = np.zeros(grid, dtype=bool)
    else:
        shown = _cells(indices_to_mask(supervision.hints, num_patches)[0], grid)
    return _Panel(hints_panel(image, shown), "Visual hints", _share(int(shown.sum()), num_patches, "patches shown"))


def _corrupted(image: Image.Image, grid: Grid, supervision: Supervision) -> _Panel:
    if supervision.masked is None:
        return _Panel(image, "Corrupted input", "nothing is masked")
    masked = _cells(supervision.masked[0], grid)
    note = _share(int(masked.sum()), masked.size, "cells masked")
    target = None
    if supervision.target is not None:
        target = _cells(supervision.target[0], grid)
        note += f", loss on the {int(target.sum())} tinted"
    return _Panel(corrupted_panel(image, masked, target=target), "Corrupted input", note)


def heat_panel(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Lay a map over a grey image.

    Args:
        image: RGB.
        heat: [rows, columns] in [0, 1].
    """
    colors = _heat_colors(heat)
    rows, columns = _lines(image.height, heat.shape[0]), _lines(image.width, heat.shape[1])
    spread = colors.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(spread), HEAT_SHARE)


def hints_panel(image: Image.Image, shown: NDArray[np.bool_]) -> Image.Image:
    """Grey out what is not shown.

    Args:
        image: RGB.
        shown: [rows, columns], True on hints.
    """
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.72)
    picture = _choose(image, pale, shown)
    _outline(picture, shown, KEPT)
    return picture


def corrupted_panel(
    image: Image.Image, masked: NDArray[np.bool_], *, target: NDArray[np.bool_] | None = None
) -> Image.Image:
    """Hatch what is masked.

    Args:
        image: RGB.
        masked: [rows, columns], True where a cell is hidden.
        target: [rows, columns], True where the loss is taken, tinted; None for all that is masked.
    """
    picture = _choose(_hatched(image.size, MASK, HATCH), image, masked)
    return picture if target is None else _choose(_hatched(image.size, TARGET, TARGET_HATCH), picture, target)


def caption_strip(
    tokens: Sequence[str], keep: Sequence[bool], *, importance: Sequence[float], width: int
) -> Image.Image:
    """Write a caption as chips, kept tokens filled, with a bar for the importance of each.

    Args:
        tokens: Text of each token.
        keep: Whether each is kept.
        importance: Of each, in [0, 1].
        width: Of the strip in pixels; the caption breaks into as many lines as it needs.
    """
    font = _font(TOKEN_PX)
    boxes = _chip_boxes([font.getlength(_printable(token)) for token in tokens], width)
    strip = Image.new("RGB", (width, max((box[3] for box in boxes), default=0) + 2 * BAR_PX), PAPER)
    pen = ImageDraw.Draw(strip)
    for token, kept, share, (left, top, right, bottom) in zip(tokens, keep, importance, boxes, strict=True):
        pen.rounded_rectangle((left, top, right, bottom), radius=4, fill=KEPT if kept else CHIP)
        middle = ((left + right) / 2, (top + bottom) / 2)
        pen.text(middle, _printable(token), font=font, fill=PAPER if kept else FAINT, anchor="mm")
        pen.rectangle((left, bottom + 3, right, bottom + 2 + BAR_PX), fill=CHIP)
        pen.rectangle((left, bottom + 3, left + share * (right - left), bottom + 2 + BAR_PX), fill=KEPT)
    return strip


def _chip_boxes(lengths: Sequence[float], width: int) -> list[Box]:
    """Return where each chip goes, filling lines from the left."""
    boxes: list[Box] = []
    left = top = 0
    for length in lengths:
        chip = round(length) + 2 * CHIP_PAD_PX
        if left and left + chip > width:
            left, top = 0, top + LINE_PX
        boxes.append((left, top, left + chip, top + TOKEN_PX + 2 * CHIP_PAD_PX - 4))
        left += chip + CHIP_PAD_PX
    return boxes


def _compose(title: str, note: str, strip: Image.Image, panels: Sequence[_Panel]) -> Image.Image:
    width = strip.width + 2 * MARGIN_PX
    top_of_note = MARGIN_PX + (TITLE_PX + 12 if title else 0)
    top_of_strip = top_of_note + NOTE_PX + 14
    top = top_of_strip + strip.height + GAP_PX
    page = Image.new("RGB", (width, top + PANEL_PX + TITLE_PX + NOTE_PX + 24 + MARGIN_PX), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN_PX, MARGIN_PX), title, font=_font(TITLE_PX + 4), fill=INK)
    pen.text((MARGIN_PX, top_of_note), note, font=_font(NOTE_PX), fill=FAINT)
    page.paste(strip, (MARGIN_PX, top_of_strip))
    for index, panel in enumerate(panels):
        left = MARGIN_PX + index * (PANEL_PX + GAP_PX)
        page.paste(panel.picture, (left, top))
        below = top + PANEL_PX + 12
        pen.text((left, below), panel.title, font=_font(TITLE_PX), fill=INK)
        pen.text((left, below + TITLE_PX + 8), panel.note, font=_font(NOTE_PX), fill=FAINT)
        if panel.scale:
            _draw_scale(page, right=left + PANEL_PX, top=below + 2)
    return page


def _draw_scale(page: Image.Image, *, right: int, top: int) -> None:
    """Draw the colours of the map from 0 to 1."""
    width, height = 120, 14
    colors = _heat_colors(np.linspace(0, 1, width, dtype=np.float32)[None])
    pen = ImageDraw.Draw(page)
    page.paste(Image.fromarray(colors.repeat(height, axis=0)), (right - width - 14, top))
    for text, left in (("0", right - width - 21), ("1", right - 7)):
        pen.text((left, top + height / 2), text, font=_font(NOTE_PX), fill=FAINT, anchor="mm")


def _heat_colors(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the colour of each value in [0, 1], [..., 3]."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(heat, stops, [color[channel] for color in HEAT]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _choose(inside: Image.Image, outside: Image.Image, cells: NDArray[np.bool_]) -> Image.Image:
    """Return `inside` where cells are True, `outside` elsewhere."""
    rows, columns = _lines(inside.height, cells.shape[0]), _lines(inside.width, cells.shape[1])
    spread = cells.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)
    return Image.composite(inside, outside, Image.fromarray(spread.astype(np.uint8) * 255))


def _hatched(size: tuple[int, int], ground: Color, line: Color) -> Image.Image:
    """Return a picture full of diagonal lines."""
    width, height = size
    picture = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(picture)
    for start in range(-height, width, HATCH_PX):
        pen.line((start, height, start + height, 0), fill=line, width=2)
    return picture


def _outline(picture: Image.Image, cells: NDArray[np.bool_], color: Color) -> None:
    """Draw the border of the True cells onto the picture."""
    rows, columns = _lines(picture.height - 1, cells.shape[0]), _lines(picture.width - 1, cells.shape[1])
    pen = ImageDraw.Draw(picture)
    framed = np.pad(cells, 1)
    for row, column in np.argwhere(framed[1:, 1:] != framed[:-1, 1:]):
        if column < cells.shape[1]:
            pen.line((columns[column], rows[row], columns[column + 1], rows[row]), fill=color, width=2)
    for row, column in np.argwhere(framed[1:, 1:] != framed[1:, :-1]):
        if row < cells.shape[0]:
            pen.line((columns[column], rows[row], columns[column], rows[row + 1]), fill=color, width=2)


def _lines(length: int, parts: int) -> NDArray[np.int64]:
    """Return the pixel where each of `parts` equal parts starts, and the end."""
    return np.linspace(0, length, parts + 1).round().astype(np.int64)


def _cells(values: torch.Tensor, grid: Grid) -> NDArray:
    """Return [N] values in raster order as an array [rows, columns]."""
    return values.cpu().numpy().reshape(grid)


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """Return [3, height, width] in [-1, 1] as an RGB image."""
    bytes_ = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).numpy())


def _share(count: int, total: int, what: str) -> str:
    return f"{count} of {total} {what} ({count / total:.0%})"


def _printable(token: str) -> str:
    return token.strip() or "\N{OPEN BOX}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

"""The picture of a supervision: what is shown, greyed, hatched and marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segros_eval.reporting import explain as module
from segros_eval.reporting.explain import (
    caption_strip,
    corrupted_panel,
    explain,
    heat_panel,
    hints_panel,
    render_explanation,
)
from segros_train.backbone import Encoded
from segros_train.draws import Draws
from segros_train.errors import PrerequisiteError
from segros_train.methods.grounding import grounding
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.types import Embeddings, GenerationBatch

WORDS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}


@dataclass(frozen=True)
class ColorBackbone:
    """Patches are embedded as their mean colour, colour words as their colour, other words as grey."""

    grid: tuple[int, int] = (4, 4)
    latent_grid: tuple[int, int] = (4, 4)
    ratio: float | None = 0.75
    side_px: int = 32

    @property
    def card(self) -> Any:
        return SimpleNamespace(title="Colours")

    def caption_tokens(self, caption: str) -> list[str]:
        return caption.split()

    def image_transform(self, purpose: str) -> Any:
        assert purpose == "generation"

        def transform(image: Image.Image, rng: torch.Generator) -> torch.Tensor:
            pixels = np.asarray(image.resize((self.side_px, self.side_px)), dtype=np.float32)
            return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1

        return transform

    def encode(self, batch: GenerationBatch) -> Encoded:
        return Encoded(batch, frozen={}, derived={})

    def embed(self, encoded: Encoded) -> Embeddings:
        batch = encoded.batch
        rows = [WORDS.get(word, (0.3, 0.3, 0.2)) for word in ("<s>", *batch.captions[0].split(), "</s>")]
        text = torch.tensor(rows).unsqueeze(0)
        valid = torch.ones(text.shape[:2], dtype=torch.bool)
        valid[:, [0, -1]] = False
        image = torch.nn.functional.adaptive_avg_pool2d(batch.images, self.grid).flatten(2).transpose(1, 2)
        return Embeddings(text, valid, image, self.grid, self.latent_grid)

    def masking_ratio(self, draws: Draws) -> torch.Tensor | None:
        return None if self.ratio is None else torch.full((len(draws),), self.ratio)


def scene() -> Image.Image:
    """A dark image whose upper left quarter is red."""
    image = Image.new("RGB", (64, 64), (20, 24, 40))
    image.paste((230, 20, 20), (0, 0, 32, 32))
    return image


def supervised(
    backbone: ColorBackbone, method: SeGroS, caption: str = "a red thing", **changes: object
) -> dict[str, Any]:
    pixels = backbone.image_transform("generation")(scene(), torch.Generator())
    batch, draws = GenerationBatch(pixels.unsqueeze(0), (caption,), ("0",)), Draws(0, 0, (0,))
    seen = replace(backbone.embed(backbone.encode(batch)), **changes)
    return {
        "seen": seen,
        "ranking": grounding(seen, method, draws=draws),
        "supervision": method.supervise(seen, backbone.masking_ratio(draws), draws),
    }


def centre(picture: Image.Image, row: int, column: int, grid: tuple[int, int]) -> tuple[int, int, int]:
    x = round((column + 0.5) * picture.width / grid[1])
    y = round((row + 0.5) * picture.height / grid[0])
    pixel = picture.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel[0], pixel[1], pixel[2]


def test_hints_keep_their_colour_and_the_rest_is_grey() -> None:
    image = Image.new("RGB", (100, 80), (200, 30, 90))
    shown = np.array([[True, False], [False, True]])
    picture = hints_panel(image, shown)
    for row, column in np.ndindex(2, 2):
        red, green, blue = centre(picture, row, column, (2, 2))
        assert ((red, green, blue) == (200, 30, 90)) is bool(shown[row, column])
        assert (red == green == blue) is not bool(shown[row, column])


def test_masked_cells_hide_the_image_and_visible_ones_show_it() -> None:
    image = Image.new("RGB", (90, 90), (10, 200, 30))
    masked = np.array([[True, False, True]] * 3)
    picture = np.asarray(corrupted_panel(image, masked))
    shows = (picture == (10, 200, 30)).all(-1)
    assert shows[:, 30:60].all()
    assert not shows[:, :30].any()
    assert not shows[:, 60:].any()


def test_a_target_is_tinted_and_other_masked_cells_are_not() -> None:
    image = Image.new("RGB", (90, 90))
    picture = np.asarray(corrupted_panel(image, np.ones((3, 3), dtype=bool), target=np.eye(3, dtype=bool)))
    tinted = (picture == module.TARGET).all(-1) | (picture == module.TARGET_HATCH).all(-1)
    assert np.array_equal(tinted, np.eye(3, dtype=bool).repeat(30, axis=0).repeat(30, axis=1))


def test_warmer_means_better_grounded() -> None:
    picture = heat_panel(Image.new("RGB", (90, 30), (128, 128, 128)), np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    cold, middle, hot = (sum(centre(picture, 0, column, (1, 3))) for column in range(3))
    assert cold < middle < hot


def test_kept_tokens_stand_out_and_bars_grow_with_importance() -> None:
    strip = np.asarray(caption_strip(["one", "two"], [True, False], importance=[1.0, 0.25], width=400))
    filled = (strip == module.KEPT).all(-1)
    font = module._font(module.TOKEN_PX)
    (left, top, right, bottom), (start, _, end, _) = module._chip_boxes(
        [font.getlength(t) for t in ("one", "two")], 400
    )
    assert filled[top : bottom + 1, left:right].mean() > 0.5
    assert not filled[top : bottom + 1, start:end].any()
    bars = filled[bottom + 3]
    assert bars[left:right].all()
    assert bars[start:end].mean() == pytest.approx(0.25, abs=0.03)


def test_a_long_caption_breaks_into_lines_within_the_width() -> None:
    tokens = ["word"] * 60
    strip = caption_strip(tokens, [False] * 60, importance=[0.0] * 60, width=500)
    boxes = module._chip_boxes([40.0] * 60, 500)
    assert strip.width == 500
    assert max(box[2] for box in boxes) <= 500
    assert len({box[1] for box in boxes}) == 9
    assert len(set(boxes)) == 60


def test_the_picture_shows_the_grounded_quarter_as_hints_and_hides_it() -> None:
    backbone, method = ColorBackbone(), SeGroS(hint_ratio=0.25, noise_scale=0.0)
    inputs = supervised(backbone, method)
    assert inputs["supervision"].hints.tolist() == [[0, 1, 4, 5]]
    page = render_explanation(scene(), ["a", "red", "thing"], title="t", **inputs)
    step = module.PANEL_PX + module.GAP_PX
    top = page.height - module.MARGIN_PX - module.PANEL_PX - module.TITLE_PX - module.NOTE_PX - 24
    panels = [
        page.crop((left, top, left + module.PANEL_PX, top + module.PANEL_PX))
        for left in range(module.MARGIN_PX, page.width - module.MARGIN_PX, step)
    ]
    assert len(panels) == 4
    image, heat, hints, corrupted = panels
    grid = (4, 4)
    assert centre(image, 0, 0, grid) == centre(hints, 0, 0, grid) == (230, 20, 20)
    assert sum(centre(heat, 0, 0, grid)) > sum(centre(heat, 3, 3, grid))
    assert len(set(centre(hints, 3, 3, grid))) == 1
    assert centre(corrupted, 0, 0, grid) in (module.MASK, module.HATCH)
    # The lowest of the flat rest, equals by index, is the end of the raster.
    assert centre(corrupted, 3, 3, grid) == (20, 24, 40)


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        (ColorBackbone(), SeGroS()),
        (ColorBackbone(latent_grid=(7, 5)), SeGroS(drop_loss=True)),
        (ColorBackbone(), SeGroS(hint_ratio=0.0, intra=False, inter=False)),
        (ColorBackbone(), Reca()),
        (ColorBackbone(ratio=None), Reca(hint_ratio=0.3)),
        (ColorBackbone(ratio=None), SeGroS()),
    ],
)
def test_any_method_with_a_map_is_explained_and_always_alike(backbone: Any, method: Any) -> None:
    one, other = (explain(backbone, scene(), "a red thing on a green table", method, seed=3) for _ in range(2))
    assert one.mode == "RGB"
    assert one.width == 2 * module.MARGIN_PX + 4 * module.PANEL_PX + 3 * module.GAP_PX
    assert one.tobytes() == other.tobytes()


def test_the_explained_supervision_comes_from_the_explained_map(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(module, "render_explanation", lambda *_, **given: drawn.update(given))
    explain(ColorBackbone(), scene(), "a red thing", SeGroS(hint_ratio=0.25), seed=9)  # type: ignore[arg-type]
    best = drawn["ranking"].perturbed[0].topk(4).indices
    assert drawn["supervision"].hints[0].tolist() == sorted(best.tolist())


def test_a_method_without_a_map_is_refused() -> None:
    with pytest.raises(PrerequisiteError, match="SFT.*no grounding map"):
        explain(ColorBackbone(), scene(), "a red thing", SFT())  # type: ignore[arg-type]


def test_an_empty_caption_is_refused() -> None:
    with pytest.raises(PrerequisiteError, match="no token"):
        explain(ColorBackbone(), scene(), "", SeGroS())  # type: ignore[arg-type]


def test_texts_that_do_not_fit_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts were given for 3"):
        render_explanation(scene(), ["a", "red"], **supervised(ColorBackbone(), SeGroS()))

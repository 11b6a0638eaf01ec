"""The reader of the embedded world finds what was painted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from segros_eval.shapes.reader import SceneReader, read_scene
from segros_train.data.shapes.world import IMAGE_PX, Scene, background, render, sample_scene

NUM_FRESH_SCENES = 2000


def _painted(scene: Scene) -> list[tuple[str, str, int, int]]:
    return sorted((thing.shape, thing.color, thing.row, thing.column) for thing in scene.objects)


def _read(image: Image.Image) -> list[tuple[str, str, int, int]]:
    return sorted((seen.shape, seen.color, seen.row, seen.column) for seen in read_scene(image))


def test_at_least_99_percent_of_2000_fresh_scenes_read_back_exactly() -> None:
    scenes = (sample_scene(20251123, index) for index in range(NUM_FRESH_SCENES))
    exact = sum(_read(render(scene)) == _painted(scene) for scene in scenes)
    assert exact >= 0.99 * NUM_FRESH_SCENES


def test_a_cluttered_background_alone_holds_no_object() -> None:
    for seed in range(300):
        canvas = np.clip(background(np.random.default_rng(seed)), 0, 255).astype(np.uint8)
        assert read_scene(Image.fromarray(canvas)) == []


def test_true_objects_pass_the_counting_threshold() -> None:
    scores = [seen.score for index in range(300) for seen in read_scene(render(sample_scene(8, index)))]
    assert np.mean([score > 0.9 for score in scores]) >= 0.995


def test_a_slightly_blurred_scene_still_reads_back() -> None:
    scenes = [sample_scene(6, index) for index in range(200)]
    blurred = (render(scene).filter(ImageFilter.GaussianBlur(0.7)) for scene in scenes)
    exact = sum(_read(image) == _painted(scene) for image, scene in zip(blurred, scenes, strict=True))
    assert exact >= 190


def test_a_smear_is_not_taken_for_a_shape_with_confidence() -> None:
    canvas = np.full((IMAGE_PX, IMAGE_PX, 3), 128, np.uint8)
    canvas[10:12, 5:60] = (214, 30, 38)
    canvas[12:60, 58:60] = (214, 30, 38)
    assert all(seen.score < 0.3 for seen in read_scene(Image.fromarray(canvas)))


def test_the_detector_gives_boxes_masks_and_colours_of_what_was_painted() -> None:
    scene = sample_scene(3, 4, tag="color_attr")
    image = render(scene)
    (detections,) = SceneReader().detect([image])
    found = dict(zip((d.label for d in detections), SceneReader().colors(image, detections), strict=True))
    assert found == {thing.shape: thing.color for thing in scene.objects}
    for detection in detections:
        x0, y0, x1, y1 = (int(value) for value in detection.box)
        assert detection.mask[y0:y1, x0:x1].sum() == detection.mask.sum() > 0


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_any_image_mode_is_read(mode: str) -> None:
    assert isinstance(read_scene(render(sample_scene(0, 0)).convert(mode)), list)

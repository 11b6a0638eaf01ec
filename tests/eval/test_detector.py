"""The detector of photographs on odd images, its weights' files, and what is said where they are missing."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.benchmarks.geneval.detector import colors
from segros_eval.benchmarks.geneval.detector.attention import gathered_attention
from segros_eval.benchmarks.geneval.detector.colors import load_clip
from segros_eval.benchmarks.geneval.detector.decoders import group_terms
from segros_eval.benchmarks.geneval.detector.files import CLIP_SHA256, checked_checkpoint, detector_files
from segros_eval.benchmarks.geneval.detector.mask2former import PhotoDetector
from segros_eval.benchmarks.geneval.detector.masks import prepare, select_instances
from segros_eval.benchmarks.geneval.detector.swin import windows
from segros_eval.benchmarks.geneval.detector.weights import DetectorConfig, DetectorNetwork, read_checkpoint
from segros_eval.benchmarks.images import read_image
from segros_eval.pipeline.catalog import load_catalog
from segros_eval.pipeline.judges import Judges
from segros_eval.pipeline.tools import missing_tools, open_tools
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

TASKS = Path(__file__).parents[2] / "tasks"
SMALL = DetectorConfig(
    embed_dim=24,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 8),
    feature_dim=48,
    mask_dim=48,
    num_groups=16,
    encoder_layers=1,
    encoder_ffn_dim=32,
    decoder_layers=2,
    decoder_ffn_dim=32,
    num_queries=5,
    image_scale_px=(160, 96),
)


@pytest.fixture(scope="module")
def network() -> DetectorNetwork:
    torch.manual_seed(0)
    return DetectorNetwork(SMALL).eval().requires_grad_(False)


def test_groups_of_the_norms_are_as_configured_and_torch_is_left_as_it_was(network: DetectorNetwork) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and {norm.num_groups for norm in norms} == {16}
    assert nn.GroupNorm(2, 4).num_groups == 2
    with pytest.raises(ValueError, match="multiple of num_groups"):
        DetectorConfig(feature_dim=50, num_groups=16)


@pytest.mark.parametrize("num_images", (1, 3))
def test_gathered_attention_is_that_of_transformers_wherever_a_point_falls(num_images: int) -> None:
    torch.manual_seed(0)
    # More cells than are gathered at once.
    shapes = [(3, 5), (24, 20), (48, 40)]
    num_cells = sum(height * width for height, width in shapes)
    theirs = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(16, 4, 3, 4)
    # Offsets of many cells: points fall far outside, on the borders and on the centres of cells.
    nn.init.normal_(theirs.sampling_offsets.weight, std=4.0)
    theirs.sampling_offsets.bias.data = torch.randint(-2, 3, (96,)).float()
    states, positions = torch.randn(num_images, num_cells, 16), torch.randn(num_cells, 16)
    states[:, 0] = positions[0] = 0
    centres = torch.rand(num_cells, 2)
    with torch.inference_mode():
        ours = gathered_attention(theirs, states, positions=positions, centres=centres, shapes=shapes)
        expected, _ = theirs(
            states,
            encoder_hidden_states=states,
            position_embeddings=positions,
            reference_points=centres[None, :, None].expand(num_images, -1, 3, -1),
            spatial_shapes_list=shapes,
        )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 224)])
@pytest.mark.parametrize("num_images", (1, 2))
def test_on_a_cpu_the_logits_are_those_of_transformers(height: int, width: int, num_images: int) -> None:
    torch.manual_seed(0)
    network = DetectorNetwork(replace(SMALL, depths=(2, 2, 2, 2), encoder_layers=2, decoder_layers=4))
    network = network.eval().requires_grad_(False)
    # Biases and tables begin as zeros, which would hide where they are added, and masks cover nearly all or nothing.
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "bias_table")):
            nn.init.normal_(parameter, std=0.5)
    pixels = torch.randn(num_images, 3, height, width)
    with torch.inference_mode():
        for ours, theirs in zip(network(pixels), network.in_transformers(pixels), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", (0, 3))
def test_every_cell_of_a_map_has_one_place_in_its_windows(shift: int) -> None:
    where = windows(9, 16, side=7, shift=shift)
    assert len(where.cells) == 14 * 21 and where.blanks.sum() == 14 * 21 - 9 * 16
    assert torch.equal(where.cells[where.places], torch.arange(9 * 16))
    assert not where.blanks[where.places].any()


def test_group_norms_keep_their_digits_where_means_are_large() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    cells = torch.randn(2, 50, 60, 8) * torch.rand(8) + 20 * torch.randn(4).repeat_interleave(2)
    with torch.inference_mode():
        scale, shift = group_terms(norm, cells)
        expected = norm.double()(cells.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close((cells * scale + shift).double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("size", "resized"), [((96, 96), (96, 96)), ((640, 64), (16, 160)), ((30, 20), (96, 144))])
def test_sides_follow_mmdets_rule_and_padding_is_grey(size: tuple[int, int], resized: tuple[int, int]) -> None:
    prepared = prepare(Image.new("RGB", size, (1, 2, 3)), SMALL)
    assert prepared.resized == resized
    assert all(side % 32 == 0 for side in prepared.pixels.shape[:2])
    assert (prepared.pixels[resized[0] :] == 128).all() and (prepared.pixels[:, resized[1] :] == 128).all()


def test_instances_lie_within_images_of_any_shape_and_mode(network: DetectorNetwork, tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), (9, 99, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    modes = [Image.new(mode, (50, 30), 77) for mode in ("L", "RGBA", "P")]
    images = [read_image(one) for one in (*modes, tmp_path / "turned.jpg", Image.new("RGB", (300, 20)))]
    assert images[3].size == (20, 40)
    for image, found in zip(images, PhotoDetector(network).detect(images), strict=True):
        assert len(found) == 100
        for one in found:
            x0, y0, x1, y1 = one.box
            assert one.mask.shape == image.size[::-1]
            assert 0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height
            if one.mask.any():
                rows, columns = np.nonzero(one.mask)
                assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_an_empty_mask_has_no_box_and_no_score() -> None:
    image = prepare(Image.new("RGB", (96, 96)), SMALL)
    found = select_instances(torch.randn(2, 81), torch.full((2, 24, 24), -3.0), image, max_per_image=4, min_score=0)
    assert found.boxes.eq(0).all() and found.scores.eq(0).all() and not found.masks.any()


def test_where_no_candidate_can_pass_there_is_no_instance() -> None:
    image = prepare(Image.new("RGB", (96, 96)), SMALL)
    found = select_instances(torch.zeros(2, 81), torch.ones(2, 24, 24), image, max_per_image=4, min_score=0.3)
    assert len(found.scores) == 0 and found.masks.shape == (0, 96, 96)


def test_classes_of_one_query_share_its_mask_and_rank_by_their_probabilities() -> None:
    image = prepare(Image.new("RGB", (96, 96)), SMALL)
    classes = torch.zeros(3, 81)
    classes[1, 4], classes[1, 7], classes[2, 5] = 9, 8, 12
    masks = torch.randn(3, 24, 24)
    found = select_instances(classes, masks, image, max_per_image=3, min_score=0)
    assert found.labels.tolist() == [5, 4, 7]
    assert torch.equal(found.masks[1], found.masks[2]) and not torch.equal(found.masks[0], found.masks[1])
    probabilities = classes.softmax(-1)[1, [4, 7]]
    torch.testing.assert_close(found.scores[1] / found.scores[2], probabilities[0] / probabilities[1])


def test_images_of_several_sizes_come_back_in_order(network: DetectorNetwork) -> None:
    images = [Image.new("RGB", size, (50, 60, 70)) for size in ((96, 96), (96, 48), (96, 96))]
    found = PhotoDetector(network, batch_size=2).detect(images)
    assert [instances[0].mask.shape for instances in found] == [(96, 96), (48, 96), (96, 96)]


def test_openais_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "embed_dim": 8,
        "vision_cfg": open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=64),
        "text_cfg": open_clip.CLIPTextCfg(width=64, heads=1, layers=1, vocab_size=60, context_length=8),
    }
    clip = open_clip.CLIP(**sizes, quick_gelu=True)
    names = {**clip.state_dict(), "input_resolution": torch.tensor(64), "context_length": torch.tensor(8)}
    torch.jit.save(torch.jit.script(_Archive(names)), tmp_path / "clip.pt")
    monkeypatch.setattr(colors.open_clip, "create_model", lambda name: open_clip.CLIP(**sizes, quick_gelu=True))
    loaded = load_clip(tmp_path / "clip.pt", sha256=file_sha256(tmp_path / "clip.pt")).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in clip.state_dict().items())
    (tmp_path / "clip.pt").write_bytes(b"no archive")
    with pytest.raises(PrerequisiteError, match="cannot be read"):
        load_clip(tmp_path / "clip.pt", sha256=file_sha256(tmp_path / "clip.pt"))


def test_no_archive_but_openais_own_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.save(torch.jit.script(_Archive({"weight": torch.zeros(2)})), tmp_path / "clip.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the archive was opened"))
    with pytest.raises(
        PrerequisiteError, match=f"sha256 is {file_sha256(tmp_path / 'clip.pt')}, expected {CLIP_SHA256}"
    ):
        load_clip(tmp_path / "clip.pt")
    declared = {file.name: file.sha256 for file in load_catalog(TASKS).benchmarks["geneval"].files}
    assert declared[detector_files()[1].name] == CLIP_SHA256


class _Archive(nn.Module):
    """Tensors under dotted names, as a tree of modules without code."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        below: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = tensor
            else:
                self.register_buffer(head, tensor)
        for head, parts in below.items():
            self.add_module(head, _Archive(parts))

    def forward(self) -> int:
        return 0


def test_a_checkpoint_whose_content_is_not_what_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    checkpoint, _ = detector_files()
    with pytest.raises(PrerequisiteError, match="does not exist"):
        checked_checkpoint(checkpoint)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"truncated")
    with pytest.raises(PrerequisiteError, match="its name says 743b7d99"):
        checked_checkpoint(checkpoint)
    digest = hashlib.sha256(b"whole").hexdigest()
    good = tmp_path / f"weights-{digest[:8]}.pth"
    good.write_bytes(b"whole")
    assert checked_checkpoint(good) == digest


def test_a_checkpoint_is_held_to_the_whole_digest_of_its_first_copy(tmp_path: Path) -> None:
    # A name without letters of a digest fits both: as if the digests of both began alike.
    checkpoint = tmp_path / "weights-.pth"
    checkpoint.write_bytes(b"first")
    first = checked_checkpoint(checkpoint)
    assert json.loads((tmp_path / "sha256.json").read_text()) == {checkpoint.name: first}
    checkpoint.write_bytes(b"second")
    with pytest.raises(PrerequisiteError, match=f"that of the first copy was {first}"):
        checked_checkpoint(checkpoint)
    checkpoint.write_bytes(b"first")
    assert checked_checkpoint(checkpoint) == first


class HistoryBuffer:
    """mmengine's record of a training's values, as far as a file of weights shows it."""

    def __init__(self) -> None:
        self.log, self.methods = np.arange(3.0), {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        return float(self.log.mean())


@pytest.mark.parametrize("zipped", (True, False))
def test_records_of_a_training_beside_mmdets_tensors_are_left_out(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = tmp_path / "weights.pth", "mmengine.logging.history_buffer"
    content = {
        "meta": {"epoch": 50, "best": np.float64(0.49), "classes": ("person", "bicycle")},
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
        "state_dict": OrderedDict(weight=torch.arange(6.0).view(2, 3)),
    }
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging", module):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setattr(sys.modules[module], "HistoryBuffer", HistoryBuffer, raising=False)
        patch.setattr(HistoryBuffer, "__module__", module)
        patch.setattr(HistoryBuffer.mean, "__module__", module)
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        named = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        assert {f"{module}.HistoryBuffer", "builtins.getattr"} <= named
    read = read_checkpoint(path)
    assert read.keys() == {"weight"} and torch.equal(read["weight"], content["state_dict"]["weight"])


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("geneval", "743b7d99.pth does not exist", "segros data fetch geneval"),
        ("dpgbench", "pytorch_model.bin does not exist", "segros data fetch dpgbench"),
        ("compbench", "the judge Qwen/Qwen2.5-VL-32B-Instruct, and there is none", "segros judge install"),
    ],
)
def test_what_photographs_lack_is_named_with_its_remedy(
    name: str, what: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    monkeypatch.delenv("SEGROS_JUDGE", raising=False)
    task: Any = load_catalog(TASKS).evaluators[name]
    (lack,) = missing_tools(task, "photo")
    assert what in lack.what and remedy in lack.remedy
    assert missing_tools(task, "shapes") == []
    with pytest.raises(PrerequisiteError, match="there is none|does not exist"):
        open_tools(task, "photo", judges=Judges())


def test_the_detector_is_told_the_smaller_threshold() -> None:
    assert GenEval().min_score == 0.3
    assert GenEval(threshold=0.95).min_score == 0.9

"""Mask2Former with a Swin backbone: the network of transformers, under the weights that mmdet published.

Both are the same network under other names. Three things need more than a name: mmdet keeps query, key and value of
an attention in one tensor, its patch merging orders its input channels by channel first, and transformers fixes the
groups of every GroupNorm at 32 and counts one decoder layer more. Checkpoints of mmdet 2.x and 3.x are read alike.

Source: open-mmlab/mmdetection v2.28.2 and v3.3.0 (mmdet/models), configs/mask2former.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

from segros_eval.benchmarks.geneval.detector.decoders import decoded_queries, mask_logits, pixel_features
from segros_eval.benchmarks.geneval.detector.swin import swin_features
from segros_train.errors import PrerequisiteError
from segros_train.weight_files import read_weight_file

__all__ = ["DetectorConfig", "DetectorNetwork", "from_mmdet", "load_network", "read_checkpoint", "to_mmdet_3"]

HF_GROUPS = 32
BESIDE = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
"""What records of a training beside mmdet's tensors name; none of it is looked up, let alone run."""


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the network and constants of its pre- and post-processing; the defaults are GenEval's detector.

    Attributes:
        embed_dim: Width of the backbone's first stage.
        depths: Blocks of the four stages.
        num_heads: Attention heads of the four stages.
        window_size: Side of an attention window.
        mlp_ratio: Width of the backbone's MLPs over that of their stage.
        feature_dim: Width of the pixel decoder and of the queries.
        mask_dim: Width of the mask features.
        num_groups: Groups of the pixel decoder's GroupNorms.
        decoder_heads: Attention heads of pixel decoder and decoder.
        encoder_layers: Layers of the pixel decoder.
        encoder_ffn_dim: Width of their MLPs.
        decoder_layers: Layers of the decoder, as mmdet counts them.
        decoder_ffn_dim: Width of their MLPs.
        num_queries: Q.
        num_classes: C.
        image_scale_px: Largest long and short side after resizing.
        mean: Per channel, RGB in 0..255.
        std: Per channel.
        pad_divisor: Sides are padded to a multiple of it.
        pad_value: Level of the padding, before normalisation.
        max_per_image: Candidates of an image.

    Source: mmdetection v2.28.2, configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    feature_dim: int = 256
    mask_dim: int = 256
    num_groups: int = 32
    decoder_heads: int = 8
    encoder_layers: int = 6
    encoder_ffn_dim: int = 1024
    decoder_layers: int = 9
    decoder_ffn_dim: int = 2048
    num_queries: int = 100
    num_classes: int = 80
    image_scale_px: tuple[int, int] = (1333, 800)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pad_divisor: int = 32
    pad_value: int = 128
    max_per_image: int = 100

    def __post_init__(self) -> None:
        if self.feature_dim % self.num_groups:
            raise ValueError(f"feature_dim {self.feature_dim} must be a multiple of num_groups {self.num_groups}.")


class DetectorNetwork(nn.Module):
    """The network alone: normalised pixels in, logits of classes and masks out."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        with _group_norms(config.num_groups):
            self.model = Mask2FormerModel(_hf_config(config))
        self.class_predictor = nn.Linear(config.feature_dim, config.num_classes + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last layer's logits; on a CPU by ways of our own, for inference alone.

        Args:
            pixels: [B, 3, height, width], normalised, sides multiples of 32.

        Returns:
            Class logits [B, Q, C + 1], the last class being "none"; mask logits [B, Q, height / 4, width / 4].
        """
        if pixels.device.type != "cpu":
            return self.in_transformers(pixels)
        module, levels = self.model.transformer_module, self.model.pixel_level_module
        features = pixel_features(levels.decoder, swin_features(levels.encoder, pixels))
        queries = decoded_queries(module, features, levels.decoder.mask_projection)
        masks = mask_logits(module, queries, features.cells, levels.decoder.mask_projection)
        return self.class_predictor(queries), masks

    def in_transformers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, to rounding, as transformers computes it; arguments and result are those of `forward`."""
        # Padding takes part in attention, as in mmdet: there is no pixel mask.
        seen = self.model(pixels, output_hidden_states=True)
        queries = seen.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(queries), seen.masks_queries_logits[-1]


def load_network(path: Path, config: DetectorConfig = DetectorConfig()) -> DetectorNetwork:
    """Load a checkpoint of mmdet 2.x or 3.x.

    Args:
        path: The `.pth` file as published, or a safetensors file of its state.
        config: Sizes.

    Raises:
        PrerequisiteError: If the file is missing, damaged or of another network.
    """
    network = DetectorNetwork(config).eval().requires_grad_(False)
    state = from_mmdet(read_checkpoint(path))
    wanted = network.state_dict()
    unset = {name for name in wanted if name.endswith("swin.layernorm.weight") or name.endswith("swin.layernorm.bias")}
    missing = sorted(wanted.keys() - state.keys() - unset)
    foreign = sorted(state.keys() - wanted.keys())
    misshapen = sorted(name for name in state.keys() & wanted.keys() if state[name].shape != wanted[name].shape)
    for what, names in (("lacks", missing), ("has besides", foreign), ("has in another shape", misshapen)):
        if names:
            raise PrerequisiteError(
                f"{path} is not the detector's checkpoint: it {what} {len(names)} tensors, e.g. {names[0]}",
                "Fetch it again with `segros data fetch geneval`.",
            )
    network.load_state_dict(state, strict=False)
    return network


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint under their own names; nothing else that it names is built or run.

    Args:
        path: The `.pth` file as published, or a safetensors file of its state.

    Raises:
        PrerequisiteError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise PrerequisiteError(
            f"The detector's weights are missing: {path} does not exist",
            "Get them with `segros data fetch geneval`.",
        )
    content = read_weight_file(path, ignored=BESIDE, remedy="Fetch it again with `segros data fetch geneval`.")
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    named = state.items() if isinstance(state, Mapping) else ()
    return {name: tensor for name, tensor in named if isinstance(name, str) and isinstance(tensor, Tensor)}


def from_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an mmdet checkpoint under our names and in our order.

    Args:
        state: Names of mmdet 2.x or 3.x.
    """
    if not _has_names_of_2x(state):
        state = {_substituted(name, _FROM_3X): tensor for name, tensor in state.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in _of_network(state).items():
        found.update(_renamed(name, tensor))
    return found


def to_mmdet_3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors of an mmdet checkpoint under the names of 3.x.

    Args:
        state: Names of mmdet 2.x or 3.x.
    """
    changes = _TO_3X if _has_names_of_2x(state) else ()
    return {_substituted(name, changes): tensor for name, tensor in _of_network(state).items()}


def _hf_config(config: DetectorConfig) -> Mask2FormerConfig:
    # Arguments that the classes take and their type stubs do not know.
    more: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    of_all: dict[str, Any] = {"num_labels": config.num_classes}
    backbone = SwinConfig(
        image_size=224,
        patch_size=4,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=True,
        layer_norm_eps=1e-5,
        drop_path_rate=0.0,
        **more,
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=config.feature_dim,
        mask_feature_size=config.mask_dim,
        hidden_dim=config.feature_dim,
        encoder_feedforward_dim=config.encoder_ffn_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,
        num_attention_heads=config.decoder_heads,
        dim_feedforward=config.decoder_ffn_dim,
        num_queries=config.num_queries,
        **of_all,
        dropout=0.0,
    )


@contextmanager
def _group_norms(num_groups: int) -> Iterator[None]:
    """Let transformers build its GroupNorms with another number of groups than the 32 it has written in."""
    if num_groups == HF_GROUPS:
        yield
        return

    class Grouped(nn.GroupNorm):
        def __init__(self, _: int, num_channels: int, **options: Any) -> None:
            super().__init__(num_groups, num_channels, **options)

    with mock.patch.object(nn, "GroupNorm", Grouped):
        yield


_E, _D, _T = "pixel_level_module.encoder.", "pixel_level_module.decoder.", "transformer_module."
_BLOCK, _SWIN_BLOCK = r"^backbone\.stages\.(\d+)\.blocks\.(\d+)\.", rf"model.{_E}swin.encoder.layers.\1.blocks.\2."
_PIXEL, _PIXEL_LAYER = r"^panoptic_head\.pixel_decoder\.", r"encoder\.layers\.(\d+)\."
_QUERY_LAYER = r"^panoptic_head\.transformer_decoder\.layers\.(\d+)\."
_FROM_3X = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.1."),
    (r"((?:pixel_decoder\.encoder|transformer_decoder)\.layers\.\d+)\.ffn\.", r"\1.ffns.0."),
)
_TO_3X = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"((?:pixel_decoder\.encoder|transformer_decoder)\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^backbone\.patch_embed\.projection\.", f"model.{_E}swin.embeddings.patch_embeddings.projection."),
        (r"^backbone\.patch_embed\.norm\.", f"model.{_E}swin.embeddings.norm."),
        (_BLOCK + r"norm1\.", _SWIN_BLOCK + "layernorm_before."),
        (_BLOCK + r"norm2\.", _SWIN_BLOCK + "layernorm_after."),
        (_BLOCK + r"attn\.w_msa\.qkv\.", _SWIN_BLOCK + "attention.{}_proj."),
        (_BLOCK + r"attn\.w_msa\.proj\.", _SWIN_BLOCK + "attention.o_proj."),
        (
            _BLOCK + r"attn\.w_msa\.relative_position_bias_table",
            _SWIN_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
        ),
        (_BLOCK + r"ffn\.layers\.0\.0\.", _SWIN_BLOCK + "mlp.fc1."),
        (_BLOCK + r"ffn\.layers\.1\.", _SWIN_BLOCK + "mlp.fc2."),
        (r"^backbone\.stages\.(\d+)\.downsample\.", rf"model.{_E}swin.encoder.layers.\1.downsample."),
        (_PIXEL + r"input_convs\.(\d+)\.conv\.", rf"model.{_D}input_projections.\1.0."),
        (_PIXEL + r"input_convs\.(\d+)\.gn\.", rf"model.{_D}input_projections.\1.1."),
        (_PIXEL + r"lateral_convs\.0\.conv\.", f"model.{_D}adapter_1.0."),
        (_PIXEL + r"lateral_convs\.0\.gn\.", f"model.{_D}adapter_1.1."),
        (_PIXEL + r"output_convs\.0\.conv\.", f"model.{_D}layer_1.0."),
        (_PIXEL + r"output_convs\.0\.gn\.", f"model.{_D}layer_1.1."),
        (_PIXEL + r"level_encoding\.weight$", f"model.{_D}level_embed"),
        (_PIXEL + r"mask_feature\.", f"model.{_D}mask_projection."),
        (_PIXEL + _PIXEL_LAYER + r"attentions\.0\.", rf"model.{_D}encoder.layers.\1.self_attn."),
        (_PIXEL + _PIXEL_LAYER + r"norms\.0\.", rf"model.{_D}encoder.layers.\1.self_attn_layer_norm."),
        (_PIXEL + _PIXEL_LAYER + r"norms\.1\.", rf"model.{_D}encoder.layers.\1.final_layer_norm."),
        (_PIXEL + _PIXEL_LAYER + r"ffns\.0\.layers\.0\.0\.", rf"model.{_D}encoder.layers.\1.fc1."),
        (_PIXEL + _PIXEL_LAYER + r"ffns\.0\.layers\.1\.", rf"model.{_D}encoder.layers.\1.fc2."),
        (_QUERY_LAYER + r"attentions\.0\.attn\.", rf"model.{_T}decoder.layers.\1.cross_attn."),
        (_QUERY_LAYER + r"attentions\.1\.attn\.in_proj_", rf"model.{_T}decoder.layers.\1.self_attn.{{}}_proj."),
        (_QUERY_LAYER + r"attentions\.1\.attn\.out_proj\.", rf"model.{_T}decoder.layers.\1.self_attn.out_proj."),
        (_QUERY_LAYER + r"norms\.0\.", rf"model.{_T}decoder.layers.\1.cross_attn_layer_norm."),
        (_QUERY_LAYER + r"norms\.1\.", rf"model.{_T}decoder.layers.\1.self_attn_layer_norm."),
        (_QUERY_LAYER + r"norms\.2\.", rf"model.{_T}decoder.layers.\1.final_layer_norm."),
        (_QUERY_LAYER + r"ffns\.0\.layers\.0\.0\.", rf"model.{_T}decoder.layers.\1.fc1."),
        (_QUERY_LAYER + r"ffns\.0\.layers\.1\.", rf"model.{_T}decoder.layers.\1.fc2."),
        (r"^panoptic_head\.transformer_decoder\.post_norm\.", f"model.{_T}decoder.layernorm."),
        (r"^panoptic_head\.query_embed\.", f"model.{_T}queries_embedder."),
        (r"^panoptic_head\.query_feat\.", f"model.{_T}queries_features."),
        (r"^panoptic_head\.level_embed\.", f"model.{_T}level_embed."),
        (r"^panoptic_head\.cls_embed\.", "class_predictor."),
    )
)


def _has_names_of_2x(state: Mapping[str, Tensor]) -> bool:
    return any(".attentions.0." in name for name in state)


def _of_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the network computes with: no index tables, no weights of losses."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("backbone.", "panoptic_head."))
        and not name.endswith("relative_position_index")
        and not name.startswith("panoptic_head.loss")
    }


def _substituted(name: str, changes: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in changes:
        name = re.sub(pattern, replacement, name)
    return name


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of mmdet 2.x under our name; a fused projection becomes three tensors."""
    if norm := re.match(r"^backbone\.norm(\d+)\.(.*)", name):
        return {f"model.{_E}hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}": tensor}
    if head := re.match(r"^panoptic_head\.mask_embed\.(\d+)\.(.*)", name):
        return {f"model.{_T}decoder.mask_predictor.mask_embedder.{int(head[1]) // 2}.0.{head[2]}": tensor}
    if name.endswith("downsample.reduction.weight") or ".downsample.norm." in name:
        tensor = _merged_order(tensor)
    for pattern, replacement in _NAMES:
        ours, found = pattern.subn(replacement, name)
        if found and "{}" in ours:
            return {ours.format(part): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        if found:
            return {ours: tensor}
    return {name: tensor}


def _merged_order(tensor: Tensor) -> Tensor:
    """Reorder the last dimension of a patch merging, four neighbours of C channels.

    In mmdet the neighbour counts fastest, row by row; in transformers the channel does, and neighbours stand in the
    order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    neighbours = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return neighbours.transpose(-1, -2).flatten(-2)

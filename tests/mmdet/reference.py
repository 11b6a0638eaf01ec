"""Run mmdet's own Mask2Former on a prepared tensor; run inside mmdet's environment.

`python reference.py CONFIG WEIGHTS PIXELS RESULT`: sizes as the golden set's config.json, weights under mmdet 2.x
names, pixels as a safetensors file, logits of classes and masks out. On a CPU mmcv needs no compiled operations.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def without_compiled_operations() -> None:
    """Let mmcv be imported without its compiled part; whatever calls it fails."""
    from mmcv.utils import ext_loader

    ext_loader.load_ext = lambda name, functions: SimpleNamespace(**dict.fromkeys(functions))


def model_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return mmdet 3.x's configuration of the network. Source: mmdetection v3.3.0, configs/mask2former."""
    backbone, width = sizes["backbone"], sizes["feat_channels"]
    norm = {"type": "GN", "num_groups": sizes["gn_groups"]}

    def attention(heads: int) -> dict[str, Any]:
        return {"embed_dims": width, "num_heads": heads, "dropout": 0.0, "batch_first": True}

    def ffn(hidden: int) -> dict[str, Any]:
        relu = {"type": "ReLU", "inplace": True}
        return {"embed_dims": width, "feedforward_channels": hidden, "num_fcs": 2, "ffn_drop": 0.0, "act_cfg": relu}

    deformable = {**attention(sizes["num_heads"]), "num_levels": sizes["num_levels"], "num_points": sizes["num_points"]}
    encoder = {
        "num_layers": sizes["encoder_layers"],
        "layer_cfg": {"self_attn_cfg": deformable, "ffn_cfg": ffn(sizes["encoder_ffn"])},
    }
    head = _head(
        sizes, norm=norm, encoder=encoder, attention=attention(sizes["num_heads"]), ffn=ffn(sizes["decoder_ffn"])
    )
    swin = {
        **{name: value for name, value in backbone.items() if name != "type"},
        "type": "SwinTransformer",
        "out_indices": (0, 1, 2, 3),
        "drop_path_rate": 0.0,
        "init_cfg": None,
    }
    return {"backbone": swin, "panoptic_head": head}


def _head(sizes: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of all that follows the backbone."""
    width = sizes["feat_channels"]
    pixel_decoder = {
        "type": "MSDeformAttnPixelDecoder",
        "num_outs": 3,
        "norm_cfg": parts["norm"],
        "act_cfg": {"type": "ReLU"},
        "encoder": parts["encoder"],
        "positional_encoding": {"num_feats": width // 2, "normalize": True},
    }
    layer = {
        "self_attn_cfg": parts["attention"],
        "cross_attn_cfg": parts["attention"],
        "ffn_cfg": parts["ffn"],
    }
    decoder = {
        "return_intermediate": True,
        "num_layers": sizes["decoder_layers"],
        "layer_cfg": layer,
        "init_cfg": None,
    }
    return {
        "type": "Mask2FormerHead",
        "in_channels": sizes["in_channels"],
        "strides": [4, 8, 16, 32],
        "feat_channels": width,
        "out_channels": sizes["out_channels"],
        "num_things_classes": sizes["num_classes"],
        "num_stuff_classes": 0,
        "num_queries": sizes["num_queries"],
        "num_transformer_feat_level": 3,
        "pixel_decoder": pixel_decoder,
        "enforce_decoder_input_project": False,
        "positional_encoding": {"num_feats": width // 2, "normalize": True},
        "transformer_decoder": decoder,
        "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * sizes["num_classes"] + [0.1]},
        "loss_mask": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        "loss_dice": {"type": "DiceLoss", "use_sigmoid": True, "naive_dice": True},
    }


def as_3x(name: str) -> str:
    """Return a tensor's name of mmdet 2.x as 3.x has it."""
    name = re.sub(r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn.", name)
    name = re.sub(r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn.", name)
    name = re.sub(r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn.", name)
    return re.sub(r"(panoptic_head\..*\.layers\.\d+)\.ffns\.0\.", r"\1.ffn.", name)


def main(config: str, weights: str, pixels: str, result: str) -> None:
    """Build, load, run, write."""
    without_compiled_operations()
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    parts = Config(model_config(json.loads(Path(config).read_text(encoding="utf-8"))))
    backbone, head = MODELS.build(parts["backbone"]), MODELS.build(parts["panoptic_head"])
    for module in (backbone, head):
        module.eval()
    state = {as_3x(name): tensor for name, tensor in load_file(weights).items()}
    for prefix, module in (("backbone.", backbone), ("panoptic_head.", head)):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        lacking, foreign = module.load_state_dict(own, strict=False)
        lacking = [name for name in lacking if "loss" not in name and "relative_position_index" not in name]
        assert not lacking and not foreign, (prefix, lacking[:3], foreign[:3])
    images = load_file(pixels)["pixels"]
    size = tuple(images.shape[-2:])
    about = DetDataSample(metainfo={"img_shape": size, "batch_input_shape": size, "pad_shape": size})
    with torch.no_grad():
        classes, masks = head(backbone(images), [about] * len(images))
    save_file({"classes": classes[-1].contiguous(), "masks": masks[-1].contiguous()}, result)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run mmdet's own Mask2Former; run inside mmdet's environment.

`python reference.py weights CHECKPOINT` writes random weights of the official configuration, as a checkpoint of mmdet
3.x. `python reference.py logits SIZES CHECKPOINT PIXELS RESULT` runs the network on a prepared tensor: sizes as the
golden set's config.json, or `-` for the official ones; pixels as a safetensors file, logits of classes and masks out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


def official_model() -> Any:
    """Return mmdet's own configuration of the network, without the weights that training begins with."""
    import mmdet
    from mmengine.config import Config

    (path,) = (Path(mmdet.__file__).parent / ".mim").rglob(CONFIG)
    model = Config.fromfile(path).model
    model.backbone.init_cfg = None
    return model


def resized(model: Any, sizes: dict[str, Any]) -> Any:
    """Return the configuration at other sizes."""
    head, width = model.panoptic_head, sizes["feat_channels"]
    for name, value in sizes["backbone"].items():
        if name != "type":
            model.backbone[name] = value
    head.update({name: sizes[name] for name in ("in_channels", "feat_channels", "out_channels", "num_queries")})
    head.num_things_classes = sizes["num_classes"]
    head.loss_cls.class_weight = [1.0] * sizes["num_classes"] + [0.1]
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    head.pixel_decoder.norm_cfg.num_groups = sizes["gn_groups"]
    encoder.num_layers, decoder.num_layers = sizes["encoder_layers"], sizes["decoder_layers"]
    encoder.layer_cfg.self_attn_cfg.update(
        embed_dims=width,
        num_heads=sizes["num_heads"],
        num_levels=sizes["num_levels"],
        num_points=sizes["num_points"],
    )
    encoder.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=sizes["encoder_ffn"])
    for attention in (decoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.cross_attn_cfg):
        attention.update(embed_dims=width, num_heads=sizes["num_heads"])
    decoder.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=sizes["decoder_ffn"])
    for positions in (head.positional_encoding, head.pixel_decoder.positional_encoding):
        positions.num_feats = width // 2
    return model


def built(model: Any) -> Any:
    """Return the whole detector in evaluation mode; whatever calls mmcv's compiled part fails."""
    from mmdet.registry import MODELS

    return MODELS.build(model).eval()


def write_weights(checkpoint: str) -> None:
    """Write random weights, whose classes and masks differ from query to query."""
    torch.manual_seed(0)
    network = built(official_model())
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.dim() > 1 and name.startswith("panoptic_head.cls_embed"):
                tensor.normal_(std=0.5)
    torch.save({"state_dict": network.state_dict()}, checkpoint)


def write_logits(sizes: str, checkpoint: str, pixels: str, result: str) -> None:
    """Load strictly, run, write."""
    from mmdet.structures import DetDataSample

    model = official_model()
    if sizes != "-":
        model = resized(model, json.loads(Path(sizes).read_text(encoding="utf-8")))
    network = built(model)
    lacking, foreign = network.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"], strict=False)
    lacking = [name for name in lacking if "loss" not in name and "relative_position_index" not in name]
    assert not lacking and not foreign, (lacking[:3], foreign[:3])
    images = load_file(pixels)["pixels"]
    size = tuple(images.shape[-2:])
    about = DetDataSample(metainfo={"img_shape": size, "batch_input_shape": size, "pad_shape": size})
    with torch.no_grad():
        classes, masks = network.panoptic_head(network.backbone(images), [about] * len(images))
    save_file({"classes": classes[-1].contiguous(), "masks": masks[-1].contiguous()}, result)


def main(command: str, *arguments: str) -> None:
    """Do what is asked."""
    from mmcv.utils import ext_loader

    ext_loader.load_ext = lambda name, functions: SimpleNamespace(**dict.fromkeys(functions))
    from mmdet.utils import register_all_modules

    register_all_modules()
    {"weights": write_weights, "logits": write_logits}[command](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])

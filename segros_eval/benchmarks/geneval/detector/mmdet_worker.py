"""What runs inside mmdet's environment: reads a line of JSON for each picture, writes its instances, answers a line.

It imports nothing of segros, which is not installed there. Started as `python detector_mmdet_worker.py CONFIG
CHECKPOINT`, where CHECKPOINT is a safetensors file; an empty message asks for the versions.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["main"]


def main(config: str, checkpoint: str) -> None:
    """Answer until standard input ends."""
    # Whatever a library prints goes to standard error; answers alone go to standard output.
    answers, sys.stdout = sys.stdout, sys.stderr
    _allow_missing_operations()
    import mmcv
    import mmdet
    import torch
    from mmdet.apis import DetInferencer
    from mmengine.runner import CheckpointLoader

    # In place of mmengine's own reader of local files, which unpickles.
    CheckpointLoader.register_scheme("", _load_safetensors, force=True)
    inferencer: Any = DetInferencer(model=config, weights=checkpoint, device="cpu", show_progress=False)
    _check(inferencer.model, _load_safetensors(checkpoint)["state_dict"])
    for line in sys.stdin:
        message = json.loads(line)
        if message:
            _detect(inferencer, message)
        versions = {"mmdet": mmdet.__version__, "mmcv": mmcv.__version__, "torch": torch.__version__}
        answers.write(json.dumps(versions) + "\n")
        answers.flush()


def _allow_missing_operations() -> None:
    """Let mmcv be imported without its compiled operations, which Mask2Former does not call on a CPU."""
    from types import SimpleNamespace

    from mmcv.utils import ext_loader

    ext_loader.load_ext = lambda name, functions: SimpleNamespace(**dict.fromkeys(functions))


def _load_safetensors(path: str, map_location: Any = None) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {"state_dict": load_file(path)}


def _check(network: Any, state: dict[str, Any]) -> None:
    """End with a message unless a checkpoint has every tensor of the network and no other; mmdet itself only warns."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    beside = {
        name for name in shapes if name.endswith("relative_position_index") or name.startswith("panoptic_head.loss")
    }
    odd = sorted(
        name
        for name in (shapes.keys() | state.keys()) - beside
        if name not in shapes or name not in state or shapes[name] != state[name].shape
    )
    if odd:
        sys.exit(f"The checkpoint is not of this network: {len(odd)} tensors differ, e.g. {odd[0]}.")


def _detect(inferencer: Any, message: dict[str, str]) -> None:
    import numpy as np

    (sample,) = inferencer([message["image"]], return_datasamples=True)["predictions"]
    found = sample.pred_instances.cpu()
    np.savez(
        message["result"],
        labels=found.labels.numpy(),
        scores=found.scores.numpy(),
        boxes=found.bboxes.numpy(),
        masks=found.masks.numpy(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

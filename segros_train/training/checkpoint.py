"""Checkpoints that are whole or absent.

A checkpoint is a folder `step-000120` that appears by one rename, after every file in it has reached
the disk. It holds what `Backbone.save_pretrained` writes, `training.safetensors` (exact weights and
optimizer state, so that a restart does not depend on the precision a backbone exports), and
`checkpoint.json` (progress, the identity of the run, the digest of every file). The last checkpoint of a
finished run is lean: it holds no training state, and it replaces the others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn, optim
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256, write_json
from segros_train.weight_files import read_weight_file

__all__ = [
    "Checkpoint",
    "Progress",
    "load_training_state",
    "newest_checkpoint",
    "save_checkpoint",
    "training_state",
    "whole_weights",
]

MANIFEST = "checkpoint.json"
TRAINING_STATE = "training.safetensors"
FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Updates made; with the seed it determines every later draw and the position in the data.
        num_samples: Samples seen, of both tasks and all processes.
        seconds: Time spent in training, over all restarts.
        unreadable: Ids of the items skipped because they could not be read.
        finished: Whether the recipe is complete.
    """

    step: int = 0
    num_samples: int = 0
    seconds: float = 0.0
    unreadable: tuple[str, ...] = ()
    finished: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        path: Its folder.
        progress: How far the run had come.
        identity: What determines the run, as given to `save_checkpoint`.
    """

    path: Path
    progress: Progress
    identity: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    *,
    identity: Mapping[str, Any],
    write_backbone: Callable[[Path], None],
    state: Mapping[str, Tensor],
    keep: int = 2,
) -> Checkpoint:
    """Write a checkpoint below `folder`, then remove all but the newest `keep`.

    Args:
        folder: Home of the run's checkpoints.
        progress: How far the run has come.
        identity: JSON-ready values that a restart must share.
        write_backbone: Writes the weights for evaluation into a folder.
        state: Training state; left out where `progress.finished`.
        keep: Number of checkpoints kept; a finished run keeps the last alone.

    Raises:
        PrerequisiteError: If the folder cannot be written.
    """
    path = folder / f"step-{progress.step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder, prefix=f".{path.name}."))
        write_backbone(draft)
        if not progress.finished:
            save_file(dict(state), draft / TRAINING_STATE)
        _seal(draft, {"format": FORMAT, "progress": asdict(progress), "identity": dict(identity)})
        _remove(path)
        draft.rename(path)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise PrerequisiteError(
            f"Cannot write checkpoint {path}: {error}. Free space or choose another folder with --out; "
            "training resumes from the last checkpoint."
        ) from error
    for old in _folders(folder)[1 if progress.finished else keep :]:
        _remove(old)
    return Checkpoint(path, progress, identity)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint below `folder`, None where there is none.

    A damaged checkpoint is named in a warning and skipped; drafts left by a crash are removed.
    """
    for draft in folder.glob(".step-*"):
        shutil.rmtree(draft)
    for path in _folders(folder):
        fault = _fault(path)
        if fault is None:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            progress = manifest["progress"]
            progress["unreadable"] = tuple(progress["unreadable"])
            return Checkpoint(path, Progress(**progress), manifest["identity"])
        logger.warning("Checkpoint %s is skipped: %s.", path, fault)
    return None


def training_state(backbone: nn.Module, optimizer: optim.Optimizer, *, keep: bool = True) -> dict[str, Tensor]:
    """Return exact weights and optimizer state under names, on the CPU.

    Holds the trainable parameters and the persistent buffers; frozen parameters never change.

    Args:
        backbone: Where sharded, every process must call.
        optimizer: AdamW over its trainable parameters.
        keep: False takes part in gathering shards and returns nothing.
    """
    tensors = _model_tensors(backbone)
    for name, parameter in _trainable(backbone).items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    state = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        if keep:
            state[name] = whole.cpu().contiguous()
    return state


@contextmanager
def whole_weights(backbone: nn.Module) -> Iterator[None]:
    """Let a sharded backbone hold its whole weights for a while; every process must take part."""
    sharded = [module for module in backbone.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def load_training_state(checkpoint: Checkpoint, backbone: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put weights, buffers and optimizer state of a checkpoint in place.

    Raises:
        PrerequisiteError: If the checkpoint holds other names or shapes than the backbone.
    """
    state = read_weight_file(checkpoint.path / TRAINING_STATE, remedy="Delete its folder to go on from an older one.")
    model = _model_tensors(backbone)
    expected = {name: tuple(tensor.shape) for name, tensor in model.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith("optimizer/")}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise PrerequisiteError(
            f"Checkpoint {checkpoint.path} was made by another backbone: {len(differing)} tensors differ, "
            f"first {differing[:3]}. Choose another output folder."
        )
    for name, tensor in model.items():
        tensor.data.copy_(_like(state[name], tensor))
    _load_optimizer(optimizer, _trainable(backbone), state)


def _model_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    buffers = backbone.state_dict(keep_vars=True).keys() - parameters.keys()
    return {f"weights/{name}": parameter for name, parameter in _trainable(backbone).items()} | {
        f"buffers/{name}": backbone.get_buffer(name) for name in sorted(buffers)
    }


def _load_optimizer(
    optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith("optimizer/"):
            name, _, kind = key.removeprefix("optimizer/").rpartition("/")
            shaped = tensor.shape == parameters[name].shape
            moments.setdefault(name, {})[kind] = _like(tensor, parameters[name]) if shaped else tensor
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {index: moments[name] for index, name in enumerate(order) if name in moments}
    optimizer.load_state_dict(packed)


def _like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Shard `whole` as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return whole
    return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)


def _trainable(backbone: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _seal(draft: Path, manifest: dict[str, Any]) -> None:
    """Bring every file to the disk and write the manifest that says what a whole checkpoint holds."""
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)
        _sync(path)
    digests = {path.relative_to(draft).as_posix(): file_sha256(path) for path in files}
    write_json(draft / MANIFEST, manifest | {"files": digests})
    draft.chmod(0o755)
    _sync(draft)


def _fault(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, None where it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        for name, digest in manifest["files"].items():
            if file_sha256(path / name) != digest:
                return f"{name} is damaged"
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    return None


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a crash leaves no half of it under its name."""
    if path.exists():
        grave = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        path.rename(grave / path.name)
        shutil.rmtree(grave)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

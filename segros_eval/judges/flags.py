"""The flags of a vLLM server of ours: those of the protocol, those that fit this machine, and those that a user gives.

A flag is a name and a value, without a value a switch. The protocol's flags are pinned. How much of a device the
server takes, and how many devices, follows from what is free when it starts and from the size of the weights. What a
user gives replaces either.

Source: vLLM 0.32.0 (engine arguments).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from segros_train.errors import PrerequisiteError

__all__ = ["altering", "command_line", "fitting", "given_flags", "server_flags", "weights_bytes"]

PROTOCOL: Mapping[str, str] = {
    # A checkpoint's own generation settings (repetition penalty) would move scores.
    "generation-config": "vllm",
    "seed": "0",
    "max-model-len": "4096",
    "limit-mm-per-prompt": '{"image": 1, "video": 0}',
    # Between the parts of a JSON reply any number of blanks would be free, and use up the reply.
    "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    "mm-processor-kwargs": '{"size": {"shortest_edge": 3136, "longest_edge": 602112}}',
}
GPU = {"dtype": "bfloat16", "max-num-seqs": "256"}
CPU = {"dtype": "float32", "max-num-seqs": "8", "enforce-eager": ""}
PLACE = ("gpu-memory-utilization", "tensor-parallel-size", "port")
"""Flags that say where a server runs; they change no reply, so a server that differs in them alone serves as well."""
OURS = ("model", "served-model-name", "host", "revision")
"""Flags that have a field or an option of their own."""
LARGEST_SHARE = 0.9
MARGIN_BYTES = 2 * 2**30
"""What the server's own process takes of a device besides what it asks for."""
ROOM_BYTES = 4 * 2**30
"""What it needs of each device besides the weights: activations, and keys and values of a few requests."""
_NAME = re.compile(r"[a-z][a-z0-9-]*")


def given_flags(flags: Sequence[str] | None, **named: float | None) -> dict[str, str]:
    """Return the flags that a user gives, by name.

    Args:
        flags: Each `NAME=VALUE`, or `NAME` for a switch.
        named: Values of options that have a name of their own; None where it is not given.

    Raises:
        PrerequisiteError: If a flag cannot be read, or is not for the user to give.
    """
    found = {name.replace("_", "-"): str(value) for name, value in named.items() if value is not None}
    for flag in flags or ():
        name, _, value = flag.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not _NAME.fullmatch(name):
            raise PrerequisiteError(
                f"--judge-flag takes NAME=VALUE, found {flag!r}",
                "Example: --judge-flag max-num-seqs=64.",
            )
        if name in OURS:
            raise PrerequisiteError(
                f"--judge-flag {flag}: {name} is set by segros",
                "A judge and its revision are values of the evaluation: "
                "--set judge_model=..., --set judge_revision=....",
            )
        found[name] = value.strip()
    return found


def altering(given: Mapping[str, str]) -> list[str]:
    """Return, as arguments, what of the given flags may change a reply: all but those of place."""
    return command_line({name: value for name, value in sorted(given.items()) if name not in PLACE})


def server_flags(
    *, kind: str, revision: str, given: Mapping[str, str], size: int | None, devices: Sequence[tuple[int, int]]
) -> dict[str, str]:
    """Return all flags of a server by name, but for its port.

    Args:
        kind: `"gpu"` or `"cpu"`.
        revision: The model's revision; empty for what is there.
        given: What the user gives.
        size: Bytes of the weights; None where it is not known.
        devices: Free and total bytes of each device.

    Raises:
        PrerequisiteError: If the weights do not fit.
    """
    flags = {**PROTOCOL, **(GPU if kind == "gpu" else CPU), **({"revision": revision} if revision else {})}
    # Who says how much to take knows better than this estimate.
    if kind == "gpu" and devices and "gpu-memory-utilization" not in given:
        wanted = int(given["tensor-parallel-size"]) if given.get("tensor-parallel-size", "").isdecimal() else None
        flags |= fitting(size, devices, num_devices=wanted)
    return {name: value for name, value in {**flags, **given}.items() if name != "port"}


def fitting(size: int | None, devices: Sequence[tuple[int, int]], *, num_devices: int | None = None) -> dict[str, str]:
    """Return the share of each device and the number of devices that a server takes.

    The share is what is free, at most `LARGEST_SHARE` of a device. The devices are as few as hold the weights, a power
    of two, since heads are shared out evenly.

    Args:
        size: Bytes of the weights; None where it is not known, which one device is taken for.
        devices: Free and total bytes of each device, of which the first are taken.
        num_devices: Number of devices, where it is given.

    Raises:
        PrerequisiteError: If the weights do not fit into what is free.
    """
    counts = [num_devices] if num_devices else [2**power for power in range(len(devices).bit_length())]
    best = 0
    for count in counts:
        taken = devices[:count]
        share = min(LARGEST_SHARE, *((free - MARGIN_BYTES) / total for free, total in taken))
        room = int(sum(share * total - ROOM_BYTES for _, total in taken))
        best = max(best, room)
        if share > 0 and (size is None or size <= room):
            # Rounded down: one hundredth too much and the server refuses to start.
            return {
                "gpu-memory-utilization": f"{math.floor(share * 100) / 100:.2f}",
                "tensor-parallel-size": f"{count}",
            }
    needed = "memory" if size is None else f"{size / 2**30:.1f} GiB for its weights"
    raise PrerequisiteError(
        f"The judge needs {needed}, and {best / 2**30:.1f} GiB are free for them on {counts[-1]} of "
        f"{len(devices)} devices",
        "End what else holds them, take more devices or a smaller judge (--set "
        "judge_model=...), name an endpoint with $SEGROS_JUDGE, or say how much to take with --gpu-memory-utilization.",
    )


def command_line(flags: Mapping[str, str]) -> list[str]:
    """Return flags as arguments of a command."""
    return [part for name, value in flags.items() for part in ((f"--{name}", value) if value else (f"--{name}",))]


def weights_bytes(folder: Path) -> int | None:
    """Return the size of the weights in a model's folder, as a hub's cache or the user holds it; None without any.

    Args:
        folder: A folder of files, or a model's folder of the hub's cache, of whose snapshots the largest counts.
    """
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()] or [folder]
    sizes = [sum(path.stat().st_size for path in place.glob("*.safetensors")) for place in snapshots]
    return max(sizes) or None

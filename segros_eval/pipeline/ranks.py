"""The processes of one run, started by `accelerate launch` or torchrun; one process is the ordinary case.

Every process trains; each draws and answers its share of the items; the first alone scores, writes and speaks.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Ranks", "device_name", "local_device"]


@dataclass(frozen=True)
class Ranks:
    """Which process this is.

    Attributes:
        rank: Number of this process.
        num_ranks: Number of processes.
    """

    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Join the processes that the launcher started, and return which this is."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        atexit.register(_leave)
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process scores, writes and speaks."""
        return self.rank == 0

    def gathered(self, own: Mapping[str, str]) -> dict[str, str]:
        """Wait for every process and return what all of them have."""
        if self.num_ranks == 1:
            return dict(own)
        from accelerate.utils import gather_object

        pairs: list[tuple[str, str]] = gather_object(list(own.items()))
        return dict(pairs)


def _leave() -> None:
    """Leave the group of processes: its threads, still running when the interpreter ends, would abort the process."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def local_device() -> str:
    """Return the best device for this process: its own GPU, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """Return what a torch device is called in a record: a GPU by its model."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device

"""Where a rank is: its number among the others, its device, and the group they make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tidemill.train.torch.watch import watch_collectives


def place() -> tuple[int, int]:
    """This rank and how many there are; 0 and 1 without a group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def own_device() -> torch.device:
    """This rank's GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(found)
    return found


@contextmanager
def group() -> Iterator[None]:
    """The default process group, by torchrun's variables."""
    import torch.distributed as dist

    backend = "nccl" if own_device().type == "cuda" else "gloo"
    watch_collectives()
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()

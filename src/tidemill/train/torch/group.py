"""What ranks tell each other beside gradients: decisions, sums, lists. On one rank nothing is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def agreed(value: bool) -> bool:
    """The first rank's decision."""
    if not _many():
        return value
    import torch.distributed as dist

    told = [value]
    dist.broadcast_object_list(told, src=0)
    return bool(told[0])


def gathered(value: Any) -> list[Any]:
    """What every rank has, by rank."""
    if not _many():
        return [value]
    import torch.distributed as dist

    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, value)
    return told


def summed(values: Sequence[float], *, copies: int = 1) -> list[float]:
    """Sums over all ranks, where each `copies` of them hold the same; added in the order of ranks."""
    parts = gathered(list(values))
    return [sum(column) / copies for column in zip(*parts, strict=True)]


def _many() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)

"""The global norm of a gradient that lies in pieces, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def clip(
    parameters: Iterable[torch.nn.Parameter], max_norm: float, *, device: torch.device, scale: float, copies: int, alone: bool
) -> float:
    """The norm of the whole model's gradient, which is divided by `scale` and clipped to `max_norm` in place.

    Every rank adds up the squares of what it holds, each piece weighted by one over the number of ranks that hold it too; one
    sum over all ranks is then the square of the norm. It is the same number on every rank, also where it is not finite.

    Args:
        max_norm: 0 only measures.
        scale: What the loss was multiplied by.
        copies: Ranks of this rank's pipeline stage: those that may hold the same piece.
        alone: Whether this is the only rank.
    """
    import torch

    held = [weight for weight in parameters if weight.grad is not None]
    grads = [_local(weight.grad) for weight in held]
    norms = torch.stack(torch._foreach_norm(grads)) if grads else None  # as torch.nn.utils.get_total_norm does
    if alone:
        square = sum(part * part for part in norms.tolist()) if norms is not None else 0.0
    else:
        total = torch.zeros((), dtype=torch.float64, device=device)
        if norms is not None:
            shares = torch.tensor([_pieces(weight) / copies for weight in held], dtype=torch.float64, device=device)
            total = (norms.double().square() * shares).sum()
        torch.distributed.all_reduce(total)
        square = float(total)
    norm = math.sqrt(square) / scale
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm and norm == norm else 1.0
    if factor != 1.0 or scale != 1.0:
        torch._foreach_mul_(grads, factor / scale)
    return norm


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _pieces(weight: Any) -> int:
    """Into how many different parts a weight is divided."""
    pieces = 1
    for axis, placement in enumerate(getattr(weight, "placements", ())):
        if not placement.is_replicate():  # a strided shard, of a weight divided twice, is no `Shard`
            pieces *= weight.device_mesh.size(axis)
    return pieces

"""Copies of a rank's weights: their moving average, and the best of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class Weights:
    """What this rank holds of the model: its part of each weight, and the buffers."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        held = list(parts)
        self.weights = _once(local(weight) for part in held for weight in part.parameters())
        self.buffers = _once(local(buffer) for part in held for buffer in part.buffers())

    def copy(self) -> list[Tensor]:
        """Copies of all, weights first."""
        return [tensor.clone() for tensor in (*self.weights, *self.buffers)]

    def put(self, copied: Iterable[Tensor]) -> None:
        """Write copies back in place."""
        for tensor, value in zip((*self.weights, *self.buffers), copied, strict=True):
            tensor.copy_(value)


class Average:
    """A moving average of the weights, by torch.optim.swa_utils.

    It forgets faster at first, min(decay, (1 + n) / (10 + n)) after n steps, or the untrained weights would stay in it for long.
    """

    def __init__(self, weights: Weights, *, decay: float) -> None:
        self._held = weights
        self._decay = decay
        self.steps = 0
        self.averages = [weight.clone() for weight in weights.weights]

    def update(self) -> None:
        """Take the weights as a step left them into the average."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        for averages, weights in _by_type(self.averages, self._held.weights):
            get_ema_multi_avg_fn(decay)(averages, weights, self.steps)

    def swap(self) -> None:
        """Exchange weights and averages; a second call exchanges them back."""
        for weight, average in zip(self._held.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    held: Any = tensor.detach()
    return held.to_local() if hasattr(held, "to_local") else held  # type: ignore[no-any-return]


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, though modules may share it."""
    return list({(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor for tensor in tensors}.values())


def _by_type(averages: list[Tensor], weights: list[Tensor]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    grouped: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for average, weight in zip(averages, weights, strict=True):
        pair = grouped.setdefault((weight.dtype, weight.device), ([], []))
        pair[0].append(average)
        pair[1].append(weight)
    return grouped.values()

"""Copies of a rank's weights: their moving average, and the best of them. What is sharded stays sharded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


# Buffers that follow the weights while they are trained.
RUNNING = ("running_mean", "running_var")


class Weights:
    """What this rank holds of the model, by the names of the whole: its part of each weight, and the buffers."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]], buffers: Iterable[tuple[str, Tensor]]) -> None:
        self.weights = {name: weight.detach() for name, weight in weights}
        self.buffers = {name: buffer.detach() for name, buffer in buffers}

    def tensors(self) -> dict[str, Tensor]:
        """All of them; writing to these writes to the model."""
        return {**self.weights, **self.buffers}

    def copy(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.tensors().items()}

    def put(self, copied: Mapping[str, Tensor]) -> None:
        """Write copies back."""
        held = self.tensors()
        for name, value in copied.items():
            local(held[name]).copy_(local(value))


class Average:
    """A moving average of the weights and of the running statistics of norms, which belong to them, by torch.optim.swa_utils.

    It forgets faster at first, min(decay, (1 + n) / (10 + n)) after n steps, or the untrained weights would stay in it for long.
    """

    def __init__(self, weights: Weights, *, decay: float) -> None:
        self._decay = decay
        self.steps = 0
        statistics = {name: buffer for name, buffer in weights.buffers.items() if name.endswith(RUNNING)}
        moving = {**weights.weights, **statistics}
        self.averages = {name: weight.clone() for name, weight in moving.items()}
        self._pairs = [(local(self.averages[name]), local(weight)) for name, weight in moving.items()]
        self._groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for average, weight in self._pairs:
            group = self._groups.setdefault((weight.dtype, weight.device), ([], []))
            group[0].append(average)
            group[1].append(weight)

    def update(self) -> None:
        """Take the weights as a step left them into the average."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self.steps += 1
        average = get_ema_multi_avg_fn(min(self._decay, (1 + self.steps) / (10 + self.steps)))
        for averages, weights in self._groups.values():
            average(averages, weights, self.steps)

    def swap(self) -> None:
        """Exchange weights and averages; a second call exchanges them back."""
        for average, weight in self._pairs:
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    held: Any = tensor
    return held.to_local() if hasattr(held, "to_local") else held

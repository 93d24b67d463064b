"""Optimizers and schedules from kept libraries, which weights decay, and what of an optimizer a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.load import need
from tidemill.train.torch.config import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def optimizer(parts: Iterable[nn.Module], config: OptimizerConfig) -> Optimizer:
    """The optimizer of a resolved config over the weights that are to be learnt; biases, norms and embeddings do not decay.

    Raises:
        ConfigError: If nothing is to be learnt.
        Unsupported: If the optimizer needs whole weights and they are divided.
    """
    import torch

    decayed, others = groups(parts)
    if not decayed and not others:
        raise ConfigError("a network must have weights to learn, has none", hint="does its build freeze all of them?")
    rate, decay = config.learning_rate, config.weight_decay
    given: list[dict[str, Any]] = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    given = [group for group in given if group["params"]]
    # One kernel over all weights: on CPUs the default goes weight by weight. It takes whole weights, AdamW's also divided ones,
    # and none takes both at once.
    divided = {hasattr(weight, "device_mesh") for weight in (*decayed, *others)}
    if config.name == "adamw":
        kernel = {"fused": True} if len(divided) == 1 else {"foreach": False}
        return _ready(torch.optim.AdamW(given, lr=rate, betas=config.betas, **kernel))
    if config.name == "sgd":
        kernel = {"fused": True} if divided == {False} else {"foreach": divided == {True}}
        return _ready(torch.optim.SGD(given, lr=rate, momentum=config.momentum, **kernel))
    if True in divided:
        raise Unsupported(
            "train.optimizer.name: lamb needs whole weights, but shard or tensor divides them", hint="adamw and sgd go with both"
        )
    for group in given:
        group["adam"] = group["weight_decay"] == 0.0  # what does not decay is not scaled by its norm either
    # Decay inside the update that is scaled, as the paper has it (You et al. 2020, algorithm 2).
    library = need("pytorch_optimizer", "train.optimizer.name = 'lamb'")
    return _ready(library.Lamb(given, lr=rate, betas=config.betas, weight_decouple=False))


def groups(parts: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights that decay, and those that do not: vectors, biases, and what norms and embeddings hold. Each once."""
    from torch import nn

    found: dict[int, tuple[nn.Parameter, bool]] = {}
    for part in parts:
        for module in part.modules():
            spared = isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Norm" in type(module).__name__
            for name, weight in module.named_parameters(recurse=False):
                if weight.requires_grad:
                    free = spared or weight.ndim < 2 or name.endswith("bias") or found.get(id(weight), (weight, False))[1]
                    found[id(weight)] = (weight, free)
    return [weight for weight, free in found.values() if not free], [weight for weight, free in found.values() if free]


def _ready(made: Optimizer) -> Optimizer:
    """The optimizer with its memory of each weight there, all 0, as before a first step: what a checkpoint is read into."""
    import torch

    rates = [group["lr"] for group in made.param_groups]
    for group in made.param_groups:
        group["lr"] = 0.0
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    made.step()
    made.zero_grad(set_to_none=True)
    for group, before in zip(made.param_groups, rates, strict=True):
        group["lr"] = before
        if "step" in group:
            group["step"] = 0
    for memory in made.state.values():
        for value in memory.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    return made


def memory(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """What the optimizer remembers, for a checkpoint: tensors by the name of their weight, and numbers of each group.

    Args:
        names: From the id of a weight to its name in the whole model.
    """
    import torch

    kept: dict[str, dict[str, Any]] = {}
    for weight, state in optimizer.state.items():
        moments = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        kept[names[id(weight)]] = {key: value for key, value in moments.items() if key == "step" or value.shape == weight.shape}
    return {
        "weights": kept,
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    }


def remember(optimizer: Optimizer, groups: Iterable[Mapping[str, Any]]) -> None:
    """Take the numbers of each group back; the tensors of `memory` are written to in place."""
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        group.update(kept)


class Schedule:
    """The learning rate by step, set in every group of an optimizer: a linear warm-up, then the way down over the rest of `steps`.

    By hand, as LambdaLR wraps each step of the optimizer, which shows in steps of a millisecond.
    """

    def __init__(self, optimizer: Optimizer, config: ScheduleConfig, *, steps: int) -> None:
        self._groups = optimizer.param_groups
        self._share = rate(config, steps=steps)
        self._largest: float = self._groups[0]["lr"]
        self._step = 0
        self._set()

    def step(self) -> None:
        """Go on to the next step."""
        self._step += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self._largest, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._largest, self._step = float(state["largest"]), int(state["step"])
        self._set()

    def _set(self) -> None:
        self.rate = self._largest * self._share(self._step)
        for group in self._groups:
            group["lr"] = self.rate


def rate(config: ScheduleConfig, *, steps: int) -> Callable[[int], float]:
    """Share of the largest learning rate at a step, from 0."""
    warmup = config.warmup or 0.0
    first = min(round(warmup * steps) if warmup < 1 else int(warmup), steps)
    return partial(_rate, kind=config.kind, floor=config.floor, warmup=first, steps=steps)


def _rate(step: int, *, kind: str, floor: float, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if kind == "cosine" else 1 - done
    return floor + (1 - floor) * left

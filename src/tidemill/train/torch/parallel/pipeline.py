"""A module cut into stages, one for each rank of the axis `pipeline`, and the schedules that micro-batches go through them by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tidemill.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

# Schedules that are kept for shapes of micro-batches, each with its buffers for what is received.
_KEPT = 16


class Flow:
    """What a stage's parts need to know of the pass that is under way."""

    def __init__(self) -> None:
        self.received: Tensor | None = None
        self.inputs: Sequence[Mapping[str, Tensor]] = ()


class Elsewhere(nn.Module):
    """Stands for a part that another stage holds.

    One that comes before the stage's own layers answers what was received; one that comes after them ends the stage, with what
    it was about to take in.
    """

    def __init__(self, flow: Flow, *, after: bool) -> None:
        super().__init__()
        self._flow, self._after = flow, after

    def forward(self, first: Tensor, *_: Any, **__: Any) -> Tensor | None:
        if self._after:
            raise _Reached(first)
        return self._flow.received


class _Reached(Exception):  # no error: the way out of the middle of a forward
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Stage(nn.Module):
    """One stage: the module's own forward, run with only the stage's own parts.

    The module must be a chain where it is cut: parts of its own that come before the list of layers, in the order in which
    they were made, then the layers, each called with what the layer before it gave as its first argument, then what comes after.
    """

    def __init__(self, module: nn.Module, flow: Flow, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.module = module
        self._flow, self._autocast = flow, autocast

    def forward(self, *received: Tensor, place: Tensor) -> Tensor:
        """What goes to the next stage, or the scores; `place` [1] says which micro-batch it is."""
        self._flow.received = received[0] if received else None
        try:
            with self._autocast():
                scores: Tensor = self.module(**self._flow.inputs[int(place)])
                return scores
        except _Reached as reached:
            return reached.hidden
        finally:
            self._flow.received = None


def homes(module: nn.Module, layers: str, starts: Sequence[int]) -> dict[str, int]:
    """The stage of each part of a module, by name; names of parts inside are not listed.

    Raises:
        ConfigError: If a weight belongs to no part.
    """
    found: dict[str, int] = {}
    path, inside, prefix = layers.split("."), module, ""
    for depth, piece in enumerate(path):
        for name, _ in inside.named_parameters(recurse=False):
            raise ConfigError(
                f"split_points: every weight must lie in a part before, in or after {layers!r}, {prefix}{name} lies around it"
            )
        before = True
        for name, _ in inside.named_children():
            if name == piece:
                before = False
            else:
                found[f"{prefix}{name}"] = 0 if before else len(starts) - 1
        inside, prefix = inside.get_submodule(piece), ".".join(path[: depth + 1]) + "."
    for index, (name, _) in enumerate(inside.named_children()):
        found[f"{prefix}{name}"] = max(stage for stage, start in enumerate(starts) if start <= index)
    return found


def home_of(name: str, home: Mapping[str, int]) -> int:
    """The stage of a weight, buffer or part, by its name; 0 for what lies on every stage."""
    pieces = name.split(".")
    return next((home[part] for part in (".".join(pieces[:end]) for end in range(len(pieces), 0, -1)) if part in home), 0)


def check_ties(ties: Sequence[Sequence[str]], home: Mapping[str, int]) -> None:
    """Raise ConfigError where one weight would lie on two stages."""
    for names in ties:
        if len({home_of(name, home) for name in names}) > 1:
            said = " and ".join(f"{name} (stage {home_of(name, home)})" for name in names)
            raise ConfigError(
                f"train.parallel.pipeline: a weight must lie on one stage, {said} is one weight",
                hint="untie them, such as model.tied = false",
            )


def cut(module: nn.Module, home: Mapping[str, int], stage: int, flow: Flow) -> nn.Module:
    """The module with only one stage's parts, in place; parts without weights stay on every stage."""
    for name, other in home.items():
        if other != stage and any(True for _ in module.get_submodule(name).parameters()):
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, Elsewhere(flow, after=other > stage))
    return module


class Pipe:
    """Runs a stage by PyTorch's schedules.

    Buffers for what is received have one shape, so there is a schedule for each number and shape of micro-batches.
    """

    def __init__(
        self, module: nn.Module, flow: Flow, *, index: int, stages: int, kind: str, device: torch.device, group: ProcessGroup
    ) -> None:
        self._module, self._flow = module, flow
        self._index, self._stages, self._kind, self._device, self.group = index, stages, kind, device, group
        self._loss: Callable[[Tensor, int], Tensor] | None = None
        self._schedules: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    @property
    def last(self) -> bool:
        return self._index == self._stages - 1

    def train(self, inputs: Sequence[Mapping[str, Tensor]], loss: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        """Forward and backward of all micro-batches; the loss of each on the last stage, else nothing.

        Args:
            inputs: Of each micro-batch, all of one shape.
            loss: From scores and the place of their micro-batch to what is lowered.
        """
        self._flow.inputs, self._loss = inputs, loss
        losses: list[Tensor] = []
        schedule, places = self._schedule(inputs, train=True)
        schedule.step(place=places, target=places, losses=losses if self.last else None, return_outputs=False)
        self._flow.inputs, self._loss = (), None
        return losses

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The scores of one batch, on every stage."""
        self._flow.inputs = [inputs]
        schedule, places = self._schedule([inputs], train=False)
        scores = schedule.step(place=places)
        self._flow.inputs = ()
        return self._told(scores)

    def _schedule(self, inputs: Sequence[Mapping[str, Tensor]], *, train: bool) -> tuple[Any, Tensor]:
        import torch
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        shapes = [{name: tuple(tensor.shape) for name, tensor in one.items()} for one in inputs]
        if any(shape != shapes[0] for shape in shapes):
            raise ConfigError(f"a pipeline's micro-batches must have one shape within a step, got {shapes}")
        key = (train, len(inputs), *sorted(shapes[0].items()))
        if key not in self._schedules:
            stage = PipelineStage(self._module, self._index, self._stages, self._device, group=self.group)
            made = Schedule1F1B if train and self._kind == "1f1b" else ScheduleGPipe
            self._schedules[key] = made(stage, len(inputs), loss_fn=self._lose if train else None, scale_grads=False)
            if len(self._schedules) > _KEPT:
                self._schedules.popitem(last=False)
        self._schedules.move_to_end(key)
        return self._schedules[key], torch.arange(len(inputs), device=self._device)

    def _lose(self, scores: Tensor, place: Tensor) -> Tensor:
        assert self._loss is not None  # noqa: S101 # a schedule that trains is stepped by `train` alone
        return self._loss(scores, int(place))

    def _told(self, scores: Tensor | None) -> Tensor:
        """The last stage's tensor, on every stage."""
        import torch
        import torch.distributed as dist

        source = dist.get_global_rank(self.group, self._stages - 1)
        head = torch.zeros(8, dtype=torch.int64, device=self._device)
        if scores is not None:
            head[: scores.ndim + 1] = torch.tensor([scores.ndim, *scores.shape])
            scores = scores.float().contiguous()
        dist.broadcast(head, source, group=self.group)
        if scores is None:
            ndim, *shape = head.tolist()
            scores = torch.empty(shape[:ndim], device=self._device)
        dist.broadcast(scores, source, group=self.group)
        return scores

"""What a network became on one rank, whatever the layout: `parallelize` makes it, the training loop drives it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from tidemill.train.torch.parallel import clip, pipeline, plan, shard, tensor
from tidemill.train.torch.parallel.even import even, even_inputs
from tidemill.train.torch.parallel.layout import Layout
from tidemill.train.torch.parallel.mesh import device_mesh

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tidemill.train.torch.loader.step import Step
    from tidemill.train.torch.objective import Objective


class Precision(Protocol):
    """What a forward is computed in."""

    @property
    def param_dtype(self) -> torch.dtype | None:
        """What sharded weights are gathered in; None leaves them as they are."""

    def autocast(self) -> AbstractContextManager[Any]: ...


def parallelize(
    build: Callable[[], nn.Module], layout: Layout, *, device: torch.device, precision: Precision | None = None, compiled: bool = False
) -> Parallel:
    """The network of `build` over the ranks of the default process group.

    Every rank builds the whole module and then keeps its part; the weights to start from are those of the first rank.

    Args:
        build: Makes the unparallelised module; may draw random numbers, the same ones on every rank.
        compiled: Whether forwards are compiled: the whole module on one rank, else each of its units.

    Raises:
        ConfigError: If the module does not say what the layout needs to know, or cannot be divided so.
    """
    module = build().to(device)
    config = layout.config
    units = plan.shard_units(module) if config.recompute or not layout.plain else []
    if layout.plain:
        _prepare(module, units, recompute=config.recompute, compiled=[module] if compiled else [])
        return Parallel(layout, device, precision, module, shard.Alone(module), None, [(name, 0) for name in module.state_dict()])

    mesh = device_mesh(layout, device)
    _agree(module)
    ties = plan.tied(module)
    styles: dict[str, str] = {}
    if config.tensor > 1:
        styles = plan.tensor_plan(module)
        tensor.check(module, styles, config.tensor)
    home: dict[str, int] = {}
    if config.pipeline > 1:
        home = pipeline.homes(module, *plan.stages(module, config.pipeline))
        pipeline.check_ties(ties, home)
    names = [(name, pipeline.home_of(name, home)) for name in module.state_dict()]

    flow, stage = pipeline.Flow(), mesh.get_local_rank("pipeline")
    pipeline.cut(module, home, stage, flow)
    units = [unit for unit in units if pipeline.home_of(unit, home) == stage]
    tensor.divide(module, {name: style for name, style in styles.items() if pipeline.home_of(name, home) == stage}, mesh["tensor"])
    _prepare(module, units, recompute=config.recompute, compiled=[module.get_submodule(unit) for unit in units] if compiled else [])

    whole: nn.Module = module
    autocast = precision.autocast if precision else nullcontext
    if config.pipeline > 1:
        whole, units = pipeline.Stage(module, flow, autocast), [f"module.{unit}" for unit in units]
        ties = [[f"module.{name}" for name in tie] for tie in ties]
    spread = shard.spread(whole, mesh, layout, units=units, ties=ties, dtype=precision.param_dtype if precision else None)
    if config.pipeline == 1:
        return Parallel(layout, device, precision, module, spread, mesh, names)
    pipe = pipeline.Pipe(
        whole, flow, index=stage, stages=config.pipeline, kind=config.schedule, device=device, group=mesh["pipeline"].get_group()
    )
    return Piped(layout, device, precision, module, spread, mesh, names, pipe)


class Parallel:
    """This rank's part of the network, and how its gradients meet those of the others.

    Attributes:
        parts: The modules that hold this rank's weights, under the names of the unparallelised module.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        precision: Precision | None,
        module: nn.Module,
        spread: shard.Alone,
        mesh: DeviceMesh | None,
        names: Sequence[tuple[str, int]],
    ) -> None:
        self.layout, self.device, self.parts, self.mesh = layout, device, [module], mesh
        self._spread, self._names = spread, names
        self._autocast = precision.autocast if precision else nullcontext
        self._weights = list(module.parameters())

    def forward_backward(self, step: Step, objective: Objective, *, scale: float = 1.0) -> float:
        """One whole step: its loss, the same on every rank.

        Gradients are left summed over ranks and micro-batches, divided by `step.total` and multiplied by `scale`.
        """
        spread, last = self._spread, len(step.micro) - 1
        factor = spread.factor * scale / step.total
        losses: list[Tensor] = []
        for place, micro in enumerate(step.micro):
            with spread.micro_batch(last=place == last):
                with self._autocast():
                    scores = spread.module(**self._moved(micro.inputs))
                lost, _ = objective(scores, self._to(micro.target), None if micro.weight is None else self._to(micro.weight))
                lost.backward(torch.full_like(lost, factor))
            losses.append(lost.detach())
        self._settle_gradients()
        return self._summed(losses) / step.total

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scores without gradients, on every rank that reads these inputs; the module must not be training."""
        with torch.no_grad(), self._autocast():
            scores: Tensor = self._spread.module(**self._moved(inputs))
        self._spread.settle()
        return scores

    def clip(self, max_norm: float, *, scale: float = 1.0) -> float:
        """The global norm of the gradient; the gradient is divided by `scale` and clipped to `max_norm`, 0 only measures."""
        config = self.layout.config
        copies = config.ranks // config.pipeline
        return clip.clip(self._weights, max_norm, device=self.device, scale=scale, copies=copies, alone=self.layout.plain)

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's part of the weights."""
        yield from self._weights

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, with the names of the unparallelised module."""
        for part in self.parts:
            yield from part.named_parameters()

    def full_state(self) -> dict[str, Tensor] | None:
        """The whole network's state on the first rank's CPU, with the names of the unparallelised module; None elsewhere.

        All ranks must call it.
        """
        self._spread.settle()
        (part,) = self.parts
        if self.mesh is None:
            return {name: value.detach().cpu().clone() for name, value in part.state_dict().items()}
        self._agree_statistics(self.mesh)
        held: Mapping[str, Any] = part.state_dict()
        stage, first = self.mesh.get_local_rank("pipeline"), torch.distributed.get_rank() == 0
        leads = self.layout.rank_of(pipeline=stage) == torch.distributed.get_rank()
        state: dict[str, Tensor] = {}
        for name, home in self._names:
            value = None
            if home == stage:
                value = _whole(held[name].detach()).contiguous()
            if home > 0 and first:
                value = _received(self.layout.rank_of(pipeline=home), self.device)
            elif home > 0 and home == stage and leads:
                assert value is not None  # noqa: S101
                _send(value)
            if first:
                assert value is not None  # noqa: S101
                state[name] = value.cpu().clone()
        return state if first else None

    def _agree_statistics(self, mesh: DeviceMesh) -> None:
        """Give batch norms the mean of the running statistics of all ranks that read other rows."""
        norms = [norm for part in self.parts for norm in part.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        for statistic in (value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None):
            for axis in ("data", "shard"):
                torch.distributed.all_reduce(statistic, group=mesh[axis].get_group())
            statistic /= self.layout.readers

    def _moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._to(value) for name, value in inputs.items()}

    def _to(self, value: Tensor) -> Tensor:
        return value if value.device == self.device else value.to(self.device, non_blocking=True)

    def _summed(self, losses: Sequence[Tensor]) -> float:
        """The sum over all ranks' micro-batches; ranks of a tensor group have the same ones, and one of them counts."""
        if self.mesh is None:
            return float(losses[0]) if len(losses) == 1 else float(sum(losses))
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.mesh.get_local_rank("tensor") == 0:
            for loss in losses:
                total += loss.double()
        torch.distributed.all_reduce(total)
        return float(total)

    def _settle_gradients(self) -> None:
        """Sum up gradients that are still in parts over the ranks of a tensor group."""
        if self.layout.config.tensor == 1:
            return
        for weight in self._weights:
            grad: Any = weight.grad
            if grad is not None and hasattr(grad, "placements") and grad.placements != weight.placements:
                weight.grad = grad.redistribute(placements=weight.placements)


class Piped(Parallel):
    """A stage of a pipeline. Micro-batches of a step that differ in shape are filled up to one."""

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        precision: Precision | None,
        module: nn.Module,
        spread: shard.Alone,
        mesh: DeviceMesh,
        names: Sequence[tuple[str, int]],
        pipe: pipeline.Pipe,
    ) -> None:
        super().__init__(layout, device, precision, module, spread, mesh, names)
        self._pipe = pipe

    def forward_backward(self, step: Step, objective: Objective, *, scale: float = 1.0) -> float:
        micro = even(step.micro, self.device, agree=self.layout.readers > 1)

        def loss(scores: Tensor, place: int) -> Tensor:
            one = micro[place]
            total, _ = objective(scores, self._to(one.target), None if one.weight is None else self._to(one.weight))
            return total * (scale / step.total)

        lost = self._pipe.train([self._moved(one.inputs) for one in micro], loss)
        self._settle_gradients()
        return self._summed([value.detach() / scale for value in lost])

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        filled = even_inputs(inputs, self.device, agree=self.layout.readers > 1)
        with torch.no_grad():
            scores = self._pipe.scores(self._moved(filled))
        self._spread.settle()
        name, first = next(iter(inputs.items()))
        scores = scores[: len(first)]
        return scores[:, : first.shape[1]] if scores.ndim == 3 and scores.shape[1] == filled[name].shape[1] else scores


def _prepare(module: nn.Module, units: Sequence[str], *, recompute: bool, compiled: Sequence[nn.Module]) -> None:
    """Compute units again in the backward, and compile, without renaming any part."""
    from torch.utils.checkpoint import checkpoint

    if recompute:
        for unit in units:
            part: Any = module.get_submodule(unit)
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    for part in compiled:
        part.compile()


def _agree(module: nn.Module) -> None:
    """Give every rank the first one's weights and buffers."""
    import torch.distributed as dist

    with torch.no_grad():
        for tensor_ in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor_, 0)


def _whole(value: Any) -> Tensor:
    """All of a divided tensor; every rank that has a part of it must ask."""
    if not hasattr(value, "full_tensor"):
        return value
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that two gathers are slower than one, where a weight is divided twice
    try:
        return value.full_tensor()
    finally:
        logger.setLevel(level)


def _send(value: Tensor) -> None:
    import torch.distributed as dist

    kinds = list(_KINDS)
    head = torch.tensor([kinds.index(value.dtype), value.ndim, *value.shape, *[0] * (8 - value.ndim)], device=value.device)
    dist.send(head, 0)
    dist.send(value, 0)


def _received(rank: int, device: torch.device) -> Tensor:
    import torch.distributed as dist

    head = torch.zeros(10, dtype=torch.int64, device=device)
    dist.recv(head, rank)
    kind, ndim, *shape = head.tolist()
    value = torch.empty(shape[:ndim], dtype=_KINDS[kind], device=device)
    dist.recv(value, rank)
    return value


_KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)

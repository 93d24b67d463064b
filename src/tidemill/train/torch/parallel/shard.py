"""Copies and shards: who holds which part of the weights, and when gradients meet.

Stage 3 keeps nothing whole: a unit's weights are gathered for its forward, let go, gathered again for its backward, and its
gradients are scattered in sums at once, for each micro-batch. Stage 2 gathers a unit's weights once in a step and keeps
them until its last backward; gradients are scattered for each micro-batch. Stage 1 does that with gradients too only at the
end of a step: until then each rank has them whole. Between steps weights and the optimizer's state lie divided in all three.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import ConfigError
from tidemill.train.torch.parallel.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


class Alone:
    """One rank's gradients are all there are."""

    factor = 1.0
    """What a loss is multiplied by, so that the sum of all ranks' gradients is left."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        """What is called for a forward."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch."""
        del last
        return nullcontext()

    def settle(self) -> None:
        """Let go of weights that were gathered for an evaluation."""


class Copies(Alone):
    """Every rank has all weights; gradients are summed with the last micro-batch, by DistributedDataParallel."""

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        from torch.nn.parallel import DistributedDataParallel

        group = mesh["data"].get_group()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name of broadcast_buffers is not in older releases
            self.wrapped: Any = DistributedDataParallel(
                module, process_group=group, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
        super().__init__(self.wrapped)
        self.factor = float(group.size())  # it takes the mean over ranks

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


class Shards(Alone):
    """Every rank has a part of each weight, over the axis `shard`, copied over `data`, by fully_shard."""

    def __init__(
        self,
        module: nn.Module,
        mesh: DeviceMesh,
        layout: Layout,
        *,
        units: Sequence[str],
        ties: Sequence[Sequence[str]],
        dtype: torch.dtype | None,
    ) -> None:
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        super().__init__(module)
        config = layout.config
        self._stage = config.shard_stage if config.shard > 1 else 1
        self._copied = config.data > 1
        for names in ties:
            homes = {next((unit for unit in units if name.startswith(f"{unit}.")), "") for name in names}
            if len(homes) > 1:
                raise ConfigError(f"shard_units: {' and '.join(names)} are one weight and must lie in one unit, lie in {len(homes)}")
        pinned = mesh.device_type != "cpu"
        settings: dict[str, Any] = {
            "mesh": mesh["data", "shard"] if self._copied else mesh["shard"],
            "reshard_after_forward": self._stage == 3,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(pin_memory=pinned) if config.offload else OffloadPolicy(),
        }
        if config.tensor > 1:  # the last layer's answer is this rank's view of a divided tensor; nothing here changes it in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        self._root: Any = module
        for weight in module.parameters():  # it divides only what lies in the plain order; convolutions go by the order of their input
            weight.data = weight.data.contiguous()
        for unit in units:
            fully_shard(module.get_submodule(unit), **settings)
        fully_shard(module, **settings)
        for part in self._parts():
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        if self._stage == 1:
            self._root.set_requires_gradient_sync(last)
        elif self._copied:
            self._root.set_requires_all_reduce(last)
        if self._stage < 3:
            self._root.set_reshard_after_backward(last)
        return nullcontext()

    def settle(self) -> None:
        for part in self._parts():
            part.reshard()

    def _parts(self) -> list[Any]:
        from torch.distributed.fsdp import FSDPModule

        return [part for part in self._root.modules() if isinstance(part, FSDPModule)]


def spread(
    module: nn.Module, mesh: DeviceMesh, layout: Layout, *, units: Sequence[str], ties: Sequence[Sequence[str]], dtype: torch.dtype | None
) -> Alone:
    """The module over the axes `data` and `shard`, in place.

    Copies of a module that is divided otherwise too are shards of one part each: DistributedDataParallel knows no divided
    weights.
    """
    config = layout.config
    if layout.readers == 1:
        return Alone(module)
    if config.shard == config.tensor == config.pipeline == 1:
        return Copies(module, mesh)
    return Shards(module, mesh, layout, units=units, ties=ties, dtype=dtype)

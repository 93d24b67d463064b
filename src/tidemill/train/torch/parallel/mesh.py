"""The ranks of a launch as one named mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.core.errors import ConfigError
from tidemill.train.torch.parallel.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


def device_mesh(layout: Layout, device: torch.device) -> DeviceMesh:
    """The mesh (pipeline, data, shard, tensor) over the default process group; an axis of one rank is there too.

    Raises:
        ConfigError: If the group has another number of ranks.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks != layout.config.ranks:
        raise ConfigError(f"{layout.factors} = {layout.config.ranks} ranks, but the launch has {ranks}")
    return init_device_mesh(device.type, tuple(layout.sizes.values()), mesh_dim_names=tuple(layout.sizes))

"""Single layers divided over the ranks of the axis `tensor`, by a plan in Hugging Face's notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.train.torch.parallel import plan

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

# Which axis of a Linear's weight [out, in] a style divides, where what lies between two layers stays divided.
_DIVIDED = {"colwise": 0, "rowwise": 1}


def divide(module: nn.Module, styles: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Divide the parts that `styles` names, in place.

    Raises:
        ConfigError: If names of one weight are divided differently.
    """
    from torch import nn
    from torch.distributed.tensor.parallel import parallelize_module

    ties = plan.tied(module)
    for name, style in styles.items():
        part = module.get_submodule(name)
        made = _style(f"embedding_{style}" if style in _DIVIDED and isinstance(part, nn.Embedding) else style)
        if made is not None:
            parallelize_module(part, mesh, made, src_data_rank=None)
    for names in ties:
        _tie(module, names)


def check(module: nn.Module, styles: Mapping[str, str], size: int) -> None:
    """Raise ConfigError or Unsupported where a whole module cannot be divided over `size` ranks."""
    from torch import nn

    for name, multiple in getattr(module, "tp_multiples", {}).items():
        if multiple % size:
            raise ConfigError(f"train.parallel.tensor: must divide the {multiple} {name} of {type(module).__name__}, got {size}")
    for name, style in styles.items():
        _style(style)
        part = module.get_submodule(name)
        if style in ("replicate", "sequence_parallel"):
            continue
        if not isinstance(part, nn.Embedding if style.startswith("embedding") else (nn.Linear, nn.Embedding)):
            raise ConfigError(f"tp_plan: {style} must name a Linear or an Embedding, {name} is a {type(part).__name__}")
        axis = _DIVIDED.get(style)
        if axis is not None and isinstance(part, nn.Linear) and part.weight.shape[axis] % size:
            what = ("rows", "columns")[axis]
            raise ConfigError(f"train.parallel.tensor: must divide the {part.weight.shape[axis]} {what} of {name}.weight, got {size}")


def _style(name: str) -> Any:
    """PyTorch's style for a name of Hugging Face's; None for one that changes nothing.

    Raises:
        Unsupported: If there is none.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    whole = Replicate()
    styles: dict[str, Any] = {
        "colwise": ColwiseParallel,
        "rowwise": RowwiseParallel,
        "colwise_gather_output": lambda: ColwiseParallel(output_layouts=whole),
        "colwise_rep": lambda: ColwiseParallel(output_layouts=whole),
        "rowwise_split_input": lambda: RowwiseParallel(input_layouts=whole),
        "rowwise_rep": lambda: RowwiseParallel(input_layouts=whole),
        "embedding_rowwise": lambda: RowwiseParallel(input_layouts=whole),
        "embedding_colwise": lambda: ColwiseParallel(output_layouts=whole),
        "sequence_parallel": _by_position,
        "replicate": lambda: None,
    }
    if name not in styles:
        raise Unsupported(f"tp_plan: {name!r} is not built in this version", hint=f"built: {', '.join(styles)}")
    return styles[name]()


def _by_position() -> Any:
    """Each rank computes its part of the positions (axis 1) of what comes in whole; what goes out is whole again."""
    from torch import Tensor
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
    from torch.distributed.tensor.parallel import ParallelStyle

    class ByPosition(ParallelStyle):
        def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
            return distribute_module(module, device_mesh, None, self.divided, self.whole)

        @staticmethod
        def divided(module: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            del module
            first = DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False).redistribute(placements=[Shard(1)])
            return (first, *inputs[1:])

        @staticmethod
        def whole(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            del module, mesh
            return output.redistribute(placements=[Replicate()]).to_local()

    return ByPosition()


def _tie(module: nn.Module, names: list[str]) -> None:
    """Make weights one again that were one before they were divided."""
    first, *others = (module.get_parameter(name) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if getattr(first, "placements", None) != getattr(other, "placements", None):
            raise ConfigError(
                f"tp_plan: {names[0]} and {name} are one weight and must be divided alike",
                hint="embedding_rowwise goes with colwise_gather_output",
            )
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, first)

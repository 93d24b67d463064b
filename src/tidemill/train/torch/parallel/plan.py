"""What a module says about how it may be divided: its layers, its tensor plan, where a pipeline cuts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn


def shard_units(module: nn.Module) -> list[str]:
    """Names of the parts that are gathered, or computed again, one at a time: `shard_units`, or the members of every ModuleList.

    Lists inside such a part are the part's own affair; lists of embeddings are many small tables, not layers.

    Raises:
        ConfigError: If `shard_units` names no part.
    """
    from torch import nn

    given = getattr(module, "shard_units", None)
    if given is not None:
        return [name for pattern in given for name in matching(module, pattern, "shard_units")]
    found: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and not any(name.startswith(f"{unit}.") for unit in found):
            found += [f"{name}.{child}" if name else child for child, unit in part.named_children() if not isinstance(unit, nn.Embedding)]
    return found


def tensor_plan(module: nn.Module) -> dict[str, str]:
    """Name of each part in `tp_plan` and how it is divided, patterns resolved.

    Raises:
        ConfigError: If there is no plan, or a pattern names no part.
    """
    plan: Mapping[str, str] | None = getattr(module, "tp_plan", None) or getattr(module, "_tp_plan", None)
    if not plan:
        raise ConfigError(
            f"train.parallel.tensor: needs a network with a tp_plan, {type(module).__name__} has none",
            hint='such as tp_plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}',
        )
    return {name: style for pattern, style in plan.items() for name in matching(module, pattern, "tp_plan")}


def stages(module: nn.Module, count: int) -> tuple[str, list[int]]:
    """The list of layers that a pipeline divides, and the index of the first layer of each stage.

    `split_points` is the name of a ModuleList, which is divided evenly, or the names of the layers that begin the second
    and each later stage.

    Raises:
        ConfigError: If the module says no such thing, or there are fewer layers than stages.
    """
    from torch import nn

    points: str | Sequence[str] | None = getattr(module, "split_points", None)
    if not points:
        raise ConfigError(
            f"train.parallel.pipeline: needs a network with split_points, {type(module).__name__} has none",
            hint='such as split_points = "layers", the name of its ModuleList',
        )
    if isinstance(points, str):
        (name,) = matching(module, points, "split_points")
        length = len(_layers(module, name))
        if length < count:
            raise ConfigError(f"train.parallel.pipeline: must be at most the {length} layers of {name}, got {count}")
        return name, [stage * length // count for stage in range(count)]
    parents = {name.rpartition(".")[0] for point in points for name in matching(module, point, "split_points")}
    if len(parents) != 1 or not isinstance(module.get_submodule(next(iter(parents))), nn.ModuleList):
        raise ConfigError(f"split_points: must name members of one ModuleList, got {list(points)}")
    if len(points) != count - 1:
        raise ConfigError(f"split_points: must be {count - 1} for a pipeline of {count} stages, got {list(points)}")
    starts = [0, *(int(point.rpartition(".")[2]) for point in points)]
    if starts != sorted(set(starts)):
        raise ConfigError(f"split_points: must rise from the second layer on, got {list(points)}")
    return next(iter(parents)), starts


def matching(module: nn.Module, pattern: str, where: str) -> list[str]:
    """Names of the parts that a pattern means; `*` stands for one whole piece between dots.

    Raises:
        ConfigError: If there are none; the message has near names.
    """
    pieces = pattern.split(".")
    names = [name for name, _ in module.named_modules() if name]
    found = [name for name in names if len(name.split(".")) == len(pieces) and all(map(fnmatchcase, name.split("."), pieces))]
    if not found:
        known = sorted({_general(name) for name in names})
        close = nearest(pattern, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known[:12])}"
        raise ConfigError(f"{where}: must name a part of {type(module).__name__}, got {pattern!r}", hint=hint)
    return found


def tied(module: nn.Module) -> list[list[str]]:
    """Names of each weight that has more than one."""
    named: dict[int, list[str]] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        named.setdefault(id(weight), []).append(name)
    return [names for names in named.values() if len(names) > 1]


def _layers(module: nn.Module, name: str) -> Any:
    from torch import nn

    layers = module.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"split_points: must name a ModuleList, {name!r} is a {type(layers).__name__}")
    return layers


def _general(name: str) -> str:
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))

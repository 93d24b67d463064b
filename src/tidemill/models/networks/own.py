"""A network of the user's own: `my.module:build`, called `build(shape, **params)`, gives the module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tidemill.core.errors import ConfigError
from tidemill.core.load import load, need
from tidemill.models.networks.base import NetworkModel, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OwnParams:
    """What `build` gets beside the shape."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments by name; in a project file they stand beside `kind`."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> Self:
        del path, where
        nested = tree.get("values")
        return cls(values=dict(nested) if set(tree) == {"values"} and isinstance(nested, Mapping) else dict(tree))


class Own(NetworkModel):
    """A network over features that a function of the user's builds."""

    Params: ClassVar[type] = OwnParams

    def __init__(self, ref: str) -> None:
        super().__init__()
        self.ref = ref
        function = load("model", ref)
        self.defaults = getattr(function, "defaults", {})  # type: ignore[misc]
        self.space = getattr(function, "space", {})  # type: ignore[misc]

    def build(self, shape: Shape, params: OwnParams) -> nn.Module:
        """What the function gives.

        Raises:
            ConfigError: If it does not take the parameters, or gives no module.
        """
        torch = need("torch", f"model.kind {self.ref!r}")
        try:
            module = load("model", self.ref)(shape, **params.values)
        except TypeError as error:
            raise ConfigError(
                f"model.kind: {self.ref!r} must take shape and {', '.join(params.values) or 'nothing else'}: {error}"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"model.kind: {self.ref!r} must give a torch.nn.Module, gives {type(module).__name__}")
        return module

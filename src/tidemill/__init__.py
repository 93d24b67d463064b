"""Tidemill: from a table, or a model you have, to a served package that keeps its promises.

    import tidemill as tm

    package = tm.Package.open("flights/3")

Names are imported when they are first used, so that `import tidemill` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.core.errors import TidemillError
    from tidemill.core.package import Package

__all__ = ["Package", "TidemillError", "__version__"]

_HOMES = {"Package": "tidemill.core.package", "TidemillError": "tidemill.core.errors"}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("tidemill")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tidemill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *globals()]

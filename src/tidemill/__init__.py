"""Tidemill: from a table, or a model you have, to a served package that keeps its promises.

    import tidemill as tm

    model = tm.fit(frame, target="late")
    model.predict(frame)

Names are imported when they are first used, so that `import tidemill` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.client import AsyncClient, Client
    from tidemill.core.errors import TidemillError
    from tidemill.core.package import Package
    from tidemill.estimator import TidemillClassifier, TidemillRegressor
    from tidemill.notebook import Model, fit

__all__ = [
    "AsyncClient", "Client", "Model", "Package", "TidemillClassifier", "TidemillError", "TidemillRegressor", "__version__", "fit",
]  # fmt: skip

_HOMES = {
    "AsyncClient": "tidemill.client",
    "Client": "tidemill.client",
    "Model": "tidemill.notebook",
    "Package": "tidemill.core.package",
    "TidemillError": "tidemill.core.errors",
    "TidemillClassifier": "tidemill.estimator",
    "TidemillRegressor": "tidemill.estimator",
    "fit": "tidemill.notebook",
}


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

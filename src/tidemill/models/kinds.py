"""A kind of model by what a project calls it."""

from __future__ import annotations

import inspect
from typing import Any

from tidemill.core.errors import ConfigError
from tidemill.core.load import load
from tidemill.models.base import Model


def kind_of(ref: str) -> Model:
    """A fresh model of a kind: built in, installed, a "module:attribute" that gives a Model when called, or one that builds a network.

    Raises:
        ConfigError: If it gives no model.
    """
    found = load("model", ref)
    if ":" in ref and _builds(found):
        from tidemill.models.networks.own import Own

        return Own(ref)
    try:
        made: Model = found()
    except TypeError as error:
        raise ConfigError(
            f"model.kind: {ref!r} must give a model when called without arguments, or build a network from shape: {error}"
        ) from error
    if not all(hasattr(made, name) for name in ("Params", "space", "fit", "load", "pace")):
        raise ConfigError(
            f"model.kind: {ref!r} must give a model with Params, space, fit, load and pace, gives {type(made).__name__}",
            hint="a function that builds a network has shape as its first argument",
        )
    return made


def _builds(found: Any) -> bool:
    """Whether it is a function whose first argument is `shape`."""
    if isinstance(found, type) or not callable(found):
        return False
    return next(iter(inspect.signature(found).parameters), None) == "shape"

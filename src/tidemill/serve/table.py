"""Which models answer, and what each address leads to: made whole, and replaced whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from tidemill.core.errors import NotFound
from tidemill.serve.http import Refused
from tidemill.serve.model import Model
from tidemill.serve.routes import Route


@dataclass(frozen=True, kw_only=True)
class Table:
    """Never changed: a request that began with one ends with it."""

    models: tuple[Model, ...]
    """Those that answer; the first is the default."""
    routes: Mapping[str, Mapping[str, Route]]
    """By path, then by method."""
    more: Callable[[str], Mapping[str, Route]] = lambda _: {}
    """The routes of a path that names something that need not be there yet."""

    @classmethod
    def of(cls, models: Iterable[Model], routes: Iterable[Route], *, more: Callable[[str], Mapping[str, Route]]) -> Table:
        found: dict[str, dict[str, Route]] = {}
        for route in routes:
            found.setdefault(route.path, {})[route.method] = route
        return cls(models=tuple(models), routes=found, more=more)

    def methods(self, path: str) -> Mapping[str, Route]:
        """The routes of a path by method; empty where it leads nowhere."""
        return self.routes.get(path) or self.routes.get(unquote(path).rstrip("/") or "/") or self.more(path)

    def unknown(self, path: str) -> Refused:
        """What to tell whoever asks for a path that leads nowhere."""
        before, models, after = path.partition("/models/")
        if models and before in ("", "/v1", "/v2"):
            name = after.partition("/")[0].partition(":")[0]
            known = sorted({model.name for model in self.models})
            if name not in known:
                return Refused(404, "unknown_model", str(NotFound("model", unquote(name)[:100], known)))
            versions = sorted(model.version for model in self.models if model.name == name)
            if "/versions/" in after:
                asked = after.partition("/versions/")[2].partition("/")[0]
                if asked not in versions:
                    return Refused(404, "unknown_model", str(NotFound(f"version of {name!r}", unquote(asked)[:100], versions)))
        return Refused(404, "unknown_route", str(NotFound("address", unquote(path)[:100], list(self._own_paths()))), hint="see /docs")

    def _own_paths(self) -> Iterator[str]:
        """Addresses that are of no one model."""
        return (path for path in self.routes if "/models/" not in path)

"""`[serve.cors]`: which pages of other origins may ask from a browser (the Fetch standard)."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tidemill.core.errors import ConfigError
from tidemill.serve.http import Refused, Request, Response

METHODS = "GET, POST, HEAD, OPTIONS"
HEADERS = "authorization, content-type, accept, x-api-key, x-request-id, inference-header-content-length"
EXPOSED = "x-request-id, retry-after, inference-header-content-length"


@dataclass(frozen=True, kw_only=True)
class CorsConfig:
    """Which pages of other origins may ask. Credentials travel in headers, never in cookies."""

    origins: tuple[str, ...]
    """Origins such as https://app.example.com; "*" is every one."""
    max_age_s: int = field(default=600, metadata={"min": 0, "max": 86_400})
    """How long a browser may remember the permission, in seconds."""

    def check(self) -> None:
        if not self.origins:
            raise ConfigError('serve.cors.origins: must name an origin, or "*", names none')
        for origin in self.origins:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query):
                raise ConfigError(f"serve.cors.origins: must be scheme and host such as https://app.example.com, got {origin!r}")


class Cors:
    """Answers browsers' questions and marks answers that a page may read."""

    def __init__(self, config: CorsConfig) -> None:
        self._any = "*" in config.origins
        self._origins = frozenset(config.origins)
        self._max_age_s = config.max_age_s

    def preflight(self, request: Request) -> Response:
        """The answer to OPTIONS.

        Raises:
            Refused: With 403, where the origin may not ask.
        """
        marks = self.marks(request)
        if not marks:
            raise Refused(403, "forbidden", "this origin may not ask", hint="serve.cors.origins names those that may")
        allowed = [("access-control-allow-methods", METHODS), ("access-control-allow-headers", HEADERS)]
        return Response(204, [*allowed, ("access-control-max-age", str(self._max_age_s))])

    def marks(self, request: Request) -> list[tuple[str, str]]:
        """Headers that let the asking page read the answer, none where it may not."""
        origin = str(request.headers.get("origin") or "")
        if not origin or not (self._any or origin in self._origins):
            return []
        return [
            ("access-control-allow-origin", "*" if self._any else origin),
            ("access-control-expose-headers", EXPOSED),
            ("vary", "origin"),
        ]

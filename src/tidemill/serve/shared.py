"""Redis, where servers keep things together: asked briefly, left alone for a moment where it does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tidemill.core.errors import ConfigError, Unavailable
from tidemill.core.events import Events
from tidemill.core.load import need

R = TypeVar("R")

TIMEOUT_S = 0.1
# After a failure nobody waits for it this long, and it is told of again after that.
AWAY_S = 1.0
TOLD_AGAIN_S = 60.0


class Shared:
    """One Redis of several servers. Safe from several threads.

    Args:
        setting: Path of the address in the project file.
        warning: Kind and message of the event that says that it does not answer.

    Raises:
        ConfigError: If `url` is no address.
        Unavailable: If it does not answer when the server starts.
        MissingDependency: If the extra [redis] is not installed.
    """

    def __init__(self, url: str, *, setting: str, warning: tuple[str, str], events: Events) -> None:
        redis = need("redis", setting)
        try:
            self.client: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        except ValueError as error:
            raise ConfigError(f"{setting}: must be an address such as redis://127.0.0.1:6379/0: {error}") from error
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._warning = warning
        self._events = events
        self._away_until = float("-inf")
        self._told = float("-inf")
        try:
            self.client.ping()
        except self._errors as error:
            raise Unavailable(f"{setting} must answer when the server starts: {error}") from error

    def ask(self, call: Callable[[], R]) -> R | None:
        """What `call` answers, which uses the client; None while Redis does not answer."""
        now = time.monotonic()
        if now < self._away_until:
            return None
        try:
            return call()
        except self._errors as error:
            now = time.monotonic()
            self._away_until = now + AWAY_S
            if now - self._told > TOLD_AGAIN_S:
                self._told = now
                kind, message = self._warning
                self._events.warn(kind, f"{message}: {error}")
            return None

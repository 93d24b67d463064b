"""What a caller may do: verbs, each on every model or on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tidemill.core.errors import ConfigError, nearest

Verb = Literal["predict", "read", "metrics", "admin"]
"""predict: ask a model. read: names, versions, signatures, documentation. metrics: what Prometheus scrapes. admin: load and unload."""

VERBS: tuple[str, ...] = get_args(Verb)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks: the name of a key, or the subject of a token, and its scopes: `predict`, `predict:flights`, `read`, ..."""

    name: str
    scopes: frozenset[str]

    def may(self, verb: str, model: str | None) -> bool:
        """Whether the verb is allowed, on this model where it is about one."""
        return verb in self.scopes or (model is not None and f"{verb}:{model}" in self.scopes)


def checked_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes as they were given.

    Raises:
        ConfigError: If one names no verb.
    """
    for scope in scopes:
        verb, colon, model = scope.partition(":")
        if verb not in VERBS or (colon and not model):
            close = nearest(verb, VERBS)
            raise ConfigError(
                f"a scope must be one of {', '.join(VERBS)}, or one of them with a model such as predict:flights, got {scope!r}",
                hint=f"did you mean {close!r}?" if close and close != verb else None,
            )
    return scopes

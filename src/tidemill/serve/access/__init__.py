"""Who may ask what: API keys and tokens to a caller with scopes, held against the address that is asked for."""

from __future__ import annotations

from pathlib import Path

from tidemill.core.events import Events
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.access.keys import PREFIX, KeyRing
from tidemill.serve.access.scopes import Caller
from tidemill.serve.access.tokens import Tokens
from tidemill.serve.http import Refused, Request
from tidemill.serve.routes import Route

__all__ = ["Access", "Caller"]

CHALLENGE = ("www-authenticate", 'Bearer realm="tidemill"')


class Access:
    """Checks callers as `[serve.auth]` says. Safe from several threads.

    A key comes as `Authorization: Bearer tm_...` or `X-API-Key: tm_...`, a token as `Authorization: Bearer <JWT>`. What is wrong with a
    credential is told to the log, never to the caller, and the credential itself to neither.

    Raises:
        ConfigError: If neither keys nor tokens are configured, or what they need is not there.
    """

    def __init__(self, config: AuthConfig, *, folder: Path, events: Events | None = None) -> None:
        self._keys = KeyRing(folder / config.keys) if config.keys is not None else None
        self._tokens = Tokens(config.jwt, folder=folder) if config.jwt is not None else None
        self._open = set(config.open)
        self._events = events or Events()

    def check(self, request: Request, route: Route | None) -> Caller | None:
        """The caller, who may ask for this; None where anyone may. Without a route it is only told who asks.

        Raises:
            Refused: With 401 without a valid credential, with 403 where it does not reach so far.
            Unavailable: If the keys of tokens cannot be fetched now.
        """
        if route is not None and (route.verb == "open" or route.verb in self._open):
            return None
        caller = self._caller(request)
        if route is None:
            return caller
        model = route.subject
        if not caller.may(route.verb, model):
            scope = f"{route.verb}:{model}" if model else route.verb
            raise Refused(
                403, "forbidden", f"this credential must have the scope {scope}", hint="ask whoever runs this server for one that has"
            )
        return caller

    def _caller(self, request: Request) -> Caller:
        given = str(request.headers.get("authorization") or "")
        kind, _, credential = given.partition(" ")
        key = str(request.headers.get("x-api-key") or "") or (credential.strip() if kind.lower() == "bearer" else "")
        if not key:
            raise Refused(401, "unauthorized", "a credential must be given: Authorization: Bearer <key or token>", headers=(CHALLENGE,))
        reason = "no such credential is taken here"
        try:
            if key.startswith(PREFIX):
                if self._keys is not None:
                    return self._keys.caller(key)
            elif self._tokens is not None:
                return self._tokens.caller(key)
        except PermissionError as error:
            reason = str(error)
        self._events.emit("serve.unauthorized", f"{request.method} {request.path}: {reason}", level="warning", client=request.client)
        raise Refused(401, "unauthorized", "the credential must be valid", headers=(CHALLENGE,))

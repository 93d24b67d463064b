"""The protocol's model repository: what is known, and loading and unloading by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from tidemill.core.errors import NotFound, TidemillError, Unavailable
from tidemill.serve.deployment.slot import Standing
from tidemill.serve.http import Refused, Request, Response, json_response
from tidemill.serve.routes import Route

INDEX = "/v2/repository/index"
MODELS = "/v2/repository/models/"


class Repository(Protocol):
    """What loads and unloads. Both may take as long as loading a model does; safe from several threads.

    Raises:
        NotFound: If there is no such name.
        TidemillError: If it cannot be done; then all is as it was.
    """

    def load(self, ref: str) -> None: ...
    def unload(self, name: str) -> None: ...


def index_route(standings: Callable[[], Sequence[Standing]]) -> Route:
    """Everything that answers, could not be deployed, or was unloaded."""

    def index(request: Request) -> Response:
        wanted = _body(request).get("ready") is True
        return json_response([entry for entry in map(_entry, standings()) if not wanted or entry["state"] == "READY"])

    return Route(method="POST", path=INDEX, label=INDEX, handle=index, plain=False)


def named_routes(path: str, repository: Repository) -> Mapping[str, Route]:
    """The route that loads or unloads the name in a path; empty for another path."""
    name, slash, action = path.removeprefix(MODELS).partition("/") if path.startswith(MODELS) else ("", "", "")
    if not (slash and name) or action not in ("load", "unload"):
        return {}
    ref = unquote(name)

    def change(request: Request) -> Response:
        _body(request)
        try:
            repository.load(ref) if action == "load" else repository.unload(ref)
        except NotFound as error:
            raise Refused(404, "unknown_model", error.message, hint=error.hint) from error
        except TidemillError as error:
            raise Refused(503 if isinstance(error, Unavailable) else 400, "not_loaded", str(error)) from error
        return json_response({})

    subject = ref.partition("@")[0].partition("/")[0]
    label = f"{MODELS}{{model}}/{action}"
    return {
        "POST": Route(method="POST", path=path, label=label, handle=change, plain=False, verb="admin", subject=subject, waits=True),
    }


def _entry(standing: Standing) -> dict[str, Any]:
    if standing.state == "unloaded":
        return {"name": standing.model, "version": standing.version, "state": "UNAVAILABLE", "reason": "unloaded"}
    reason = f"version {standing.wanted} could not be deployed: {standing.reason}" if standing.state == "failed" else ""
    return {"name": standing.model, "version": standing.version, "state": "READY", "reason": reason}


def _body(request: Request) -> dict[str, Any]:
    """The body, which may be empty; its parameters change nothing here.

    Raises:
        Refused: If it is no JSON object.
    """
    if not request.body:
        return {}
    try:
        return msgspec.json.decode(request.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "malformed", f"the body must be empty or a JSON object: {error}") from error

"""gRPC calls as requests of the application, so that limits, credentials, cache and metrics are the same as over HTTP.

An inference becomes the protocol's REST request with raw tensors, which is what the message holds already; its answer goes back the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import numpy as np

from tidemill.core.errors import ConfigError, Conflict
from tidemill.core.load import need
from tidemill.serve.app import INLINE_BYTES, Call
from tidemill.serve.batching.wishes import PRIORITY, TIMEOUT
from tidemill.serve.calls import Calls
from tidemill.serve.deployment.repository import INDEX, MODELS
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.serve.http import Refused, Request, Response
from tidemill.serve.oip import JSON_LENGTH
from tidemill.serve.tensors import NUMPY, to_bytes
from tidemill.serve.tls import TlsConfig

# A call without a deadline has this much time by gRPC's own account, or more.
FOR_EVER_S = 1e9

# HTTP status to the name of gRPC's code.
CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip

# Metadata that means the same as the HTTP header.
_HEADERS = ("authorization", "x-api-key", "x-request-id", "traceparent", "x-forwarded-for", TIMEOUT, PRIORITY)

# Calls that one connection may have under way; what it sends beyond them waits with the caller.
CALLS = 256
# Calls that may wait to be taken. By itself the library cancels calls at random from a thousand on: one connection that began calls and reset
# them at once cost all others theirs.
WAITING = 65_536

# Where a message keeps the values of each datatype that are not raw; those of 16 bits only come raw.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class GrpcServer:
    """Answers on a port of its own, on the running event loop: a call whose message is not here yet takes no thread.

    Args:
        together: Whether other processes answer on the same port.

    Raises:
        Conflict: If the port is taken.
        MissingDependency: If the extra [grpc] is not installed.
    """

    def __init__(self, calls: Calls, *, host: str, port: int, credentials: Any = None, together: bool = False) -> None:
        self._grpc = need("grpc", "serve.grpc_port")
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._message_s = calls.app.config.body_timeout_s
        self._server = need("grpc.aio", "serve.grpc_port").server(
            options=[
                ("grpc.max_receive_message_length", int(calls.app.config.max_body_mb * 1e6)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", CALLS),
                ("grpc.server.max_pending_requests", WAITING),
                ("grpc.server.max_pending_requests_hard_limit", WAITING),
                ("grpc.so_reuseport", int(together)),
            ]
        )
        self._broken = need("google.protobuf.message", "serve.grpc_port").DecodeError
        self._messages = messages()
        # To the library all are streams of requests, since it waits for a single one for ever.
        handlers = {
            method: self._grpc.stream_unary_rpc_method_handler(
                partial(self._answered, getattr(self, f"_{method}"), self._messages[request].FromString),
                response_serializer=self._messages[response].SerializeToString,
            )
            for method, (request, response) in METHODS.items()
        }
        self._server.add_generic_rpc_handlers((self._grpc.method_handlers_generic_handler(f"{PACKAGE}.{SERVICE}", handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise Conflict(f"port {port} of {host} must be free for gRPC: {error}", hint="serve.grpc_port takes another") from error

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()

    async def stop(self, *, grace_s: float) -> None:
        """Take no new call, and wait until those under way are answered, at most `grace_s`."""
        await self._server.stop(grace_s)

    async def _answered(self, answer: Callable[[Any, Any], Awaitable[Any]], parse: Callable[[bytes], Any], _: Any, context: Any) -> Any:
        """The answer to a call; what is no message is refused here, since the library would call it a failure of the server."""
        try:
            body = await self._message(context)
            try:
                request = await self._aside(len(body), parse, body)
            except self._broken as error:
                raise Refused(400, "malformed", f"the message must be what the method takes: {error}") from error
            return await answer(request, context)
        except Refused as refused:  # `abort` would raise what holds the call in a circle, with all that this frame knows
            context.set_code(getattr(self._grpc.StatusCode, CODES.get(refused.status, "INTERNAL")))
            context.set_details(refused.message)
            return None

    async def _message(self, context: Any) -> bytes:
        try:
            async with asyncio.timeout(self._message_s):
                body = await context.read()
        except TimeoutError as error:
            raise Refused(408, "timeout", f"the message must be here within {self._message_s:g} s") from error
        if not isinstance(body, bytes):
            raise Refused(400, "malformed", "the call must have a message")
        return body

    async def _aside(self, size: int, make: Callable[..., Any], *values: Any) -> Any:
        """What `make` makes; on a thread where so many bytes would hold up the loop."""
        return make(*values) if size <= INLINE_BYTES else await self._loop.run_in_executor(None, make, *values)

    async def _ServerLive(self, _: Any, context: Any) -> Any:  # noqa: N802 - the protocol's names
        return self._messages["ServerLiveResponse"](live=(await self._told("/v2/health/live", context))["live"])

    async def _ServerReady(self, _: Any, context: Any) -> Any:  # noqa: N802
        told = await self._told("/v2/health/ready", context, also=(503,))
        return self._messages["ServerReadyResponse"](ready=told["ready"])

    async def _ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        told = await self._told(f"{_address(request.name, request.version)}/ready", context, also=(503,))
        return self._messages["ModelReadyResponse"](ready=told["ready"])

    async def _ServerMetadata(self, _: Any, context: Any) -> Any:  # noqa: N802
        return self._messages["ServerMetadataResponse"](**await self._told("/v2", context))

    async def _ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._messages["ModelMetadataResponse"](**await self._told(_address(request.name, request.version), context))

    async def _ModelInfer(self, given: Any, context: Any) -> Any:  # noqa: N802
        head, body = await self._aside(given.ByteSize(), _as_rest, given)
        path = f"{_address(given.model_name, given.model_version)}/infer"
        response = await self._asked("POST", path, context, body, json_length=head)
        return await self._aside(len(response.body), self._as_message, response)

    async def _RepositoryIndex(self, given: Any, context: Any) -> Any:  # noqa: N802
        listed = await self._asked("POST", INDEX, context, msgspec.json.encode({"ready": given.ready}))
        return self._messages["RepositoryIndexResponse"](models=msgspec.json.decode(listed.body))

    async def _RepositoryModelLoad(self, given: Any, context: Any) -> Any:  # noqa: N802
        return await self._changed("load", given, context)

    async def _RepositoryModelUnload(self, given: Any, context: Any) -> Any:  # noqa: N802
        return await self._changed("unload", given, context)

    async def _changed(self, action: str, given: Any, context: Any) -> Any:
        """KServe's message has the model's name where Triton's has its repository's."""
        name = given.model_name or given.repository_name
        await self._asked("POST", f"{MODELS}{quote(name, safe='')}/{action}", context, b"")
        return self._messages[f"RepositoryModel{action.title()}Response"]()

    def _as_message(self, response: Response) -> Any:
        headers = dict(response.headers)
        length = int(headers.get(JSON_LENGTH, len(response.body)))
        told, at = msgspec.json.decode(response.body[:length]), length
        made = self._messages["ModelInferResponse"](
            model_name=told["model_name"], model_version=told["model_version"], id=told.get("id", "")
        )
        for output in told["outputs"]:
            size = output["parameters"]["binary_data_size"]
            made.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            made.raw_output_contents.append(response.body[at : at + size])
            at += size
        return made

    async def _told(self, path: str, context: Any, *, also: tuple[int, ...] = ()) -> dict[str, Any]:
        """What a GET of `path` answers; a status of `also` is an answer too."""
        told: dict[str, Any] = msgspec.json.decode((await self._asked("GET", path, context, b"", also=also)).body)
        return told

    async def _asked(
        self, method: str, path: str, context: Any, body: bytes, *, json_length: int | None = None, also: tuple[int, ...] = ()
    ) -> Response:
        """The application's response.

        Raises:
            Refused: With its status and reason, unless that is 200 or one of `also`.
        """
        headers = {key: value for key, value in context.invocation_metadata() if key in _HEADERS}
        if json_length is not None:
            headers[JSON_LENGTH] = str(json_length)
        left_s = context.time_remaining()
        if left_s is not None and left_s < FOR_EVER_S:
            headers.setdefault(TIMEOUT, f"{max(0.0, left_s) * 1e3:.3f}")
        response = await self._response(Request(method, path, "", headers, body, perf_counter(), _client(context.peer())))
        said = [(name, value) for name, value in response.headers if name in ("x-request-id", "traceparent", "retry-after")]
        context.set_trailing_metadata(said)
        if response.status != 200 and response.status not in also:
            error = msgspec.json.decode(response.body)["error"]
            raise Refused(response.status, "malformed", error if isinstance(error, str) else error["reason"])
        return response

    async def _response(self, request: Request) -> Response:
        landed: asyncio.Future[Response] = self._loop.create_future()

        def land(response: Response) -> None:
            if not landed.done():  # cancelled when the caller left
                landed.set_result(response)

        def go_on(call: Call) -> None:
            self._calls.answer(call, land, there=lambda: not landed.cancelled(), alone=False)

        call = self._calls.admit(request, go_on)
        if call is not None:
            go_on(call)
        return await landed


def _as_rest(given: Any) -> tuple[int, bytes]:
    """The REST request that says the same: the length of its JSON, and the body of that and raw tensors.

    Raises:
        Refused: If there is no such request.
    """
    raw = list(given.raw_input_contents)
    if raw and len(raw) != len(given.inputs):
        reason = f"raw_input_contents must hold one entry for each of {len(given.inputs)} inputs, holds {len(raw)}"
        raise Refused(400, "malformed", reason)
    if not raw:
        raw = [_raw(tensor) for tensor in given.inputs]
    elif any(tensor.HasField("contents") for tensor in given.inputs):
        raise Refused(400, "malformed", "inputs must hold their values in contents or in raw_input_contents, not both")
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(content)},
        }
        for tensor, content in zip(given.inputs, raw, strict=True)
    ]
    request: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    request["parameters"] |= {name: value for name in ("timeout", "priority") if (value := _number(given.parameters, name))}
    if given.id:
        request["id"] = given.id
    if given.outputs:
        request["outputs"] = [{"name": output.name} for output in given.outputs]
    head = msgspec.json.encode(request)
    return len(head), b"".join([head, *raw])


def _raw(tensor: Any) -> bytes:
    """Typed contents of a tensor as raw bytes."""
    name = _CONTENTS.get(tensor.datatype)
    if name is None:
        reason = f"input {tensor.name!r} must be of {', '.join(_CONTENTS)}, or come raw; got {tensor.datatype[:40]!r}"
        raise Refused(422, "field", reason)
    values = getattr(tensor.contents, name)
    if tensor.datatype == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    try:
        return to_bytes(np.array(values, NUMPY[tensor.datatype]))
    except OverflowError as error:
        raise Refused(422, "field", f"input {tensor.name!r} must hold {tensor.datatype} values") from error


def secure(tls: TlsConfig, *, folder: Path) -> Any:
    """gRPC's credentials of a certificate, read again for the next connection where its files were replaced."""
    grpc = need("grpc", "serve.grpc_port")
    known = tls.stamp(folder)

    def read() -> Any:
        cert, key = tls.checked(folder)
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), cert.read_bytes())])

    def fetch() -> Any:
        nonlocal known
        found = tls.stamp(folder)
        if found is None or found == known:
            return None
        try:
            fresh = read()
        except ConfigError:
            return None  # the HTTP side says so
        known = found
        return fresh

    return grpc.dynamic_ssl_server_credentials(read(), fetch)


def _number(parameters: Any, name: str) -> int:
    """A parameter that is a whole number; 0 where it is not given."""
    if name not in parameters:
        return 0
    given = parameters[name]
    return int(given.int64_param or given.uint64_param or 0)


def _address(name: str, version: str) -> str:
    at = f"/v2/models/{quote(name, safe='')}"
    return f"{at}/versions/{quote(version, safe='')}" if version else at


def _client(peer: str) -> str:
    """The address in gRPC's `ipv4:10.0.0.1:4711` or `ipv6:[::1]:4711`."""
    kind, _, rest = peer.partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""

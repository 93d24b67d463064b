"""gRPC calls as requests of the application, so that limits, credentials, cache and metrics are the same as over HTTP.

An inference becomes the protocol's REST request with raw tensors, which is what the message holds already; its answer goes back the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import numpy as np

from tidemill.core.errors import ConfigError, Conflict
from tidemill.core.load import need
from tidemill.serve.app import App
from tidemill.serve.batching.wishes import PRIORITY, TIMEOUT
from tidemill.serve.deployment.repository import INDEX, MODELS
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.serve.http import Request, Response
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

# Calls that may wait at once, each on a thread that is made when it is needed: what waits together goes through together.
CALLS = 256

# Where a message keeps the values of each datatype that are not raw; those of 16 bits only come raw.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class GrpcServer:
    """Answers on a port of its own, each call on a thread.

    Args:
        together: Whether other processes answer on the same port.

    Raises:
        Conflict: If the port is taken.
        MissingDependency: If the extra [grpc] is not installed.
    """

    def __init__(self, app: App, *, host: str, port: int, workers: int, credentials: Any = None, together: bool = False) -> None:
        self._grpc = need("grpc", "serve.grpc_port")
        self._app = app
        limit = int(app.config.max_body_mb * 1e6)
        options = [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", int(together))]
        self._server = self._grpc.server(ThreadPoolExecutor(max(workers, CALLS), thread_name_prefix="grpc"), options=options)
        self._broken = need("google.protobuf.message", "serve.grpc_port").DecodeError
        made = messages()
        handlers = {
            method: self._grpc.unary_unary_rpc_method_handler(
                partial(self._answered, getattr(self, f"_{method}"), made[request].FromString),
                response_serializer=made[response].SerializeToString,
            )
            for method, (request, response) in METHODS.items()
        }
        self._server.add_generic_rpc_handlers((self._grpc.method_handlers_generic_handler(f"{PACKAGE}.{SERVICE}", handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise Conflict(f"port {port} of {host} must be free for gRPC: {error}", hint="serve.grpc_port takes another") from error
        self._messages = made
        self._server.start()

    def stop(self, *, grace_s: float) -> None:
        """Take no new call, and wait until those under way are answered, at most `grace_s`."""
        self._server.stop(grace_s).wait()

    def _answered(self, answer: Callable[[Any, Any], Any], parse: Callable[[bytes], Any], body: bytes, context: Any) -> Any:
        """The answer to a call; what is no message is refused here, since the library would call it a failure of the server."""
        try:
            request = parse(body)
        except self._broken as error:
            return self._refuse(context, 400, f"the message must be what the method takes: {error}")
        return answer(request, context)

    def _ServerLive(self, _: Any, context: Any) -> Any:  # noqa: N802 - the protocol's names
        return self._messages["ServerLiveResponse"](live=self._told("/v2/health/live", context)["live"])

    def _ServerReady(self, _: Any, context: Any) -> Any:  # noqa: N802
        return self._messages["ServerReadyResponse"](ready=self._told("/v2/health/ready", context, also=(503,))["ready"])

    def _ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        told = self._told(f"{_address(request.name, request.version)}/ready", context, also=(503,))
        return self._messages["ModelReadyResponse"](ready=told["ready"])

    def _ServerMetadata(self, _: Any, context: Any) -> Any:  # noqa: N802
        return self._messages["ServerMetadataResponse"](**self._told("/v2", context))

    def _ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._messages["ModelMetadataResponse"](**self._told(_address(request.name, request.version), context))

    def _ModelInfer(self, given: Any, context: Any) -> Any:  # noqa: N802
        head, raw = self._as_rest(given, context)
        body = b"".join([head, *raw])
        path = f"{_address(given.model_name, given.model_version)}/infer"
        return self._as_message(self._asked("POST", path, context, body, json_length=len(head)))

    def _RepositoryIndex(self, given: Any, context: Any) -> Any:  # noqa: N802
        listed = msgspec.json.decode(self._asked("POST", INDEX, context, msgspec.json.encode({"ready": given.ready})).body)
        return self._messages["RepositoryIndexResponse"](models=listed)

    def _RepositoryModelLoad(self, given: Any, context: Any) -> Any:  # noqa: N802
        return self._changed("load", given, context)

    def _RepositoryModelUnload(self, given: Any, context: Any) -> Any:  # noqa: N802
        return self._changed("unload", given, context)

    def _changed(self, action: str, given: Any, context: Any) -> Any:
        """KServe's message has the model's name where Triton's has its repository's."""
        name = given.model_name or given.repository_name
        self._asked("POST", f"{MODELS}{quote(name, safe='')}/{action}", context, b"")
        return self._messages[f"RepositoryModel{action.title()}Response"]()

    def _as_rest(self, given: Any, context: Any) -> tuple[bytes, list[bytes]]:
        """The JSON and the raw tensors of the REST request that says the same."""
        raw = list(given.raw_input_contents)
        if raw and len(raw) != len(given.inputs):
            self._refuse(context, 400, f"raw_input_contents must hold one entry for each of {len(given.inputs)} inputs, holds {len(raw)}")
        if not raw:
            raw = [self._raw(tensor, context) for tensor in given.inputs]
        elif any(tensor.HasField("contents") for tensor in given.inputs):
            self._refuse(context, 400, "inputs must hold their values in contents or in raw_input_contents, not both")
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
        return msgspec.json.encode(request), raw

    def _raw(self, tensor: Any, context: Any) -> bytes:
        """Typed contents of a tensor as raw bytes."""
        name = _CONTENTS.get(tensor.datatype)
        if name is None:
            self._refuse(
                context, 422, f"input {tensor.name!r} must be of {', '.join(_CONTENTS)}, or come raw; got {tensor.datatype[:40]!r}"
            )
        values = getattr(tensor.contents, str(name))
        if tensor.datatype == "BYTES":
            return b"".join(len(value).to_bytes(4, "little") + value for value in values)
        try:
            return to_bytes(np.array(values, NUMPY[tensor.datatype]))
        except OverflowError:
            return bytes(self._refuse(context, 422, f"input {tensor.name!r} must hold {tensor.datatype} values"))

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

    def _told(self, path: str, context: Any, *, also: tuple[int, ...] = ()) -> dict[str, Any]:
        """What a GET of `path` answers; a status of `also` is an answer too."""
        told: dict[str, Any] = msgspec.json.decode(self._asked("GET", path, context, b"", also=also).body)
        return told

    def _asked(
        self, method: str, path: str, context: Any, body: bytes, *, json_length: int | None = None, also: tuple[int, ...] = ()
    ) -> Response:
        headers = {key: value for key, value in context.invocation_metadata() if key in _HEADERS}
        if json_length is not None:
            headers[JSON_LENGTH] = str(json_length)
        left_s = context.time_remaining()
        if left_s is not None and left_s < FOR_EVER_S:
            headers.setdefault(TIMEOUT, f"{max(0.0, left_s) * 1e3:.3f}")
        response = self._app.handle(Request(method, path, "", headers, body, perf_counter(), _client(context.peer()), context.is_active))
        said = [(name, value) for name, value in response.headers if name in ("x-request-id", "traceparent", "retry-after")]
        context.set_trailing_metadata(said)
        if response.status != 200 and response.status not in also:
            error = msgspec.json.decode(response.body)["error"]
            self._refuse(context, response.status, error if isinstance(error, str) else error["reason"])
        return response

    def _refuse(self, context: Any, status: int, reason: str) -> Any:
        """End the call with an error; does not come back."""
        context.abort(getattr(self._grpc.StatusCode, CODES.get(status, "INTERNAL")), reason)


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

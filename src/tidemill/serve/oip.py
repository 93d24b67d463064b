"""Open Inference Protocol v2 over REST, raw columns as named tensors, with the binary tensor extension.

Every column is one input tensor, shape [N] or [N, 1]; `<name>__valid` (BOOL) may say which whole numbers are given.
Outputs are `prediction`, with classes `probability` [N, K] in the order of the package's classes, with an interval `interval`
[N, 2], low and high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from tidemill.core.package import Answers
from tidemill.core.schema import VALID_SUFFIX, Column
from tidemill.serve import tensors
from tidemill.serve.batching.job import LEVELS
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import JSON, Refused, Request, Response, encode, json_response, malformed
from tidemill.serve.model import Model
from tidemill.serve.plain import check_rows
from tidemill.serve.routes import Route, Work, addresses, whole_number

BINARY = "application/octet-stream"
JSON_LENGTH = "inference-header-content-length"


class InferInput(msgspec.Struct):
    """One tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class InferOutput(msgspec.Struct):
    """One tensor that a request asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[InferInput]
    id: str | None = None
    outputs: list[InferOutput] | None = None
    parameters: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(InferRequest).decode


def server_routes(is_ready: Callable[[], bool]) -> Iterator[Route]:
    """The addresses that are of no one model."""

    def metadata(_: Request) -> Response:
        return json_response({"name": "tidemill", "version": version("tidemill"), "extensions": ["binary_tensor_data"]})

    def live(_: Request) -> Response:
        return json_response({"live": True})

    def ready(_: Request) -> Response:
        return json_response({"ready": is_ready()}, 200 if is_ready() else 503)

    for path, handle in {"/v2": metadata, "/v2/health/live": live, "/v2/health/ready": ready}.items():
        yield Route(method="GET", path=path, label=path, handle=handle, plain=False, verb="read" if path == "/v2" else "open")


def routes(model: Model, config: ServeConfig, *, versions: list[str], first: bool, is_ready: Callable[[], bool]) -> Iterator[Route]:
    """The addresses of one model."""

    def metadata(_: Request) -> Response:
        return json_response(model_metadata(model, versions))

    def ready(_: Request) -> Response:
        return json_response({"name": model.name, "ready": is_ready()}, 200 if is_ready() else 503)

    def infer(request: Request) -> Response | Work:
        return read_infer(request, model, config)

    for at in addresses("/v2", model, first=first):
        label = "/v2/models/{model}"
        yield Route(method="GET", path=at, label=label, handle=metadata, plain=False, subject=model.name)
        yield Route(method="GET", path=f"{at}/ready", label=f"{label}/ready", handle=ready, plain=False, subject=model.name)
        yield Route(
            method="POST",
            path=f"{at}/infer",
            label=f"{label}/infer",
            handle=infer,
            model=model,
            plain=False,
            verb="predict",
            subject=model.name,
        )


def model_metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """Name, versions, and the tensors that go in and come out."""
    sample = model.example_answer.prediction
    outputs: list[dict[str, Any]] = [{"name": "prediction", "datatype": tensors.datatype(sample), "shape": [-1, *sample.shape[1:]]}]
    if model.form.labels:
        outputs.append({"name": "probability", "datatype": "FP32", "shape": [-1, len(model.form.labels)]})
    if model.form.interval is not None:
        outputs.append({"name": "interval", "datatype": "FP32", "shape": [-1, 2]})
    return {
        "name": model.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": column.name, "datatype": tensors.datatype(column), "shape": [-1, 1]} for column in model.schema],
        "outputs": outputs,
    }


def read_infer(request: Request, model: Model, config: ServeConfig) -> Work:
    """The rows of an inference request.

    Raises:
        Refused: If the body is no such request, a tensor or an output is not what it must be.
        DataError: If an input is missing or of another type; names it.
    """
    given, raw = _body(request)
    outputs = _wanted_outputs(given, model)
    arrays: dict[str, np.ndarray] = {}
    for tensor in given.inputs:
        if tensor.name in arrays:
            raise Refused(422, "field", f"input {tensor.name!r} must be given once", field=tensor.name)
        raw = _take(tensor, raw, model, arrays)
    if len(raw):
        raise Refused(400, "malformed", f"the body must end with its last tensor, {len(raw)} bytes are left")
    inputs = model.signature.from_tensors(arrays)
    rows = check_rows(len(next(iter(inputs.values()))), config)
    timeout_s, priority = _wishes(given.parameters or {})
    return Work(model, inputs, rows, lambda answers: _response(model, given, outputs, answers), timeout_s=timeout_s, priority=priority)


def _body(request: Request) -> tuple[InferRequest, memoryview]:
    """The JSON part of the body, and the raw tensors behind it."""
    stated = request.headers.get(JSON_LENGTH)
    content, raw = request.body, memoryview(b"")
    if stated is not None:
        if not _is_size(str(stated)) or int(stated) > len(content):
            raise Refused(400, "malformed", f"{JSON_LENGTH} must be at most the body's {len(content)} bytes, got {str(stated)[:20]}")
        content, raw = content[: int(stated)], memoryview(content)[int(stated) :]
    elif request.content_type not in ("", JSON, "application/x-www-form-urlencoded", BINARY):
        raise Refused(415, "media_type", f"the body must be {JSON}, got {request.content_type}")
    try:
        return _decode(content), raw
    except msgspec.ValidationError as error:
        raise Refused(422, "field", f"the body must be an inference request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error, content) from error


def _is_size(text: str) -> bool:
    """Whether a header is a number of bytes; of thousands of digits it would be no number for Python."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def _wanted_outputs(given: InferRequest, model: Model) -> dict[str, bool]:
    """Names of the outputs to answer with, and whether each goes out as raw bytes."""
    known = [name for name in model.form.fields if name in ("prediction", "probability", "interval")]
    all_raw = bool((given.parameters or {}).get("binary_data_output", False))
    if not given.outputs:
        return dict.fromkeys(known, all_raw)
    wanted = {}
    for output in given.outputs:
        if output.name not in known:
            raise Refused(422, "field", f"output {output.name!r} is not known (known: {', '.join(known)})", field=output.name)
        wanted[output.name] = bool((output.parameters or {}).get("binary_data", all_raw))
    return wanted


def _wishes(parameters: dict[str, Any]) -> tuple[float | None, int | None]:
    """`timeout` in microseconds as seconds, and `priority`, both as Triton has them: 0 is none, a lower level goes first."""
    given = []
    for name in ("timeout", "priority"):
        value = parameters.get(name)
        if value is not None and (not whole_number(value) or value < 0):
            raise Refused(422, "field", f"parameter {name!r} must be a whole number from 0 on, got {str(value)[:40]!r}", field=name)
        given.append(value or None)
    timeout, priority = given
    return None if timeout is None else timeout / 1e6, None if priority is None else min(priority, LEVELS[-1])


def _take(tensor: InferInput, raw: memoryview, model: Model, arrays: dict[str, np.ndarray]) -> memoryview:
    """Add one tensor to `arrays`; what is left of the raw bytes."""
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is not None:
        if not whole_number(size) or not 0 <= size <= len(raw):
            raise Refused(
                400, "malformed", f"input {tensor.name!r}: binary_data_size must be at most the {len(raw)} bytes left, got {size!r}"
            )
        arrays[tensor.name] = tensors.from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[:size])
        return raw[size:]
    values, valid = tensors.from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
    if valid is not None and tensor.name in model.schema:
        column: Column = model.schema[tensor.name]
        values = tensors.null_times(column, values, valid)
        if column.type == "int64":
            arrays.setdefault(column.name + VALID_SUFFIX, valid)
    arrays[tensor.name] = values
    return raw


def _response(model: Model, given: InferRequest, outputs: dict[str, bool], answers: Answers) -> Response:
    arrays = {"prediction": answers.prediction, "probability": answers.probability, "interval": answers.interval}
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, as_bytes in outputs.items():
        values = arrays[name]
        if values is None:
            continue
        entry: dict[str, Any] = {"name": name, "datatype": tensors.datatype(values), "shape": list(values.shape)}
        if as_bytes:
            content = tensors.to_bytes(values)
            entry["parameters"] = {"binary_data_size": len(content)}
            raw.append(content)
        else:
            flat = values.ravel().tolist()
            entry["data"] = [str(value) for value in flat] if entry["datatype"] == "BYTES" else flat
        described.append(entry)
    body: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if given.id is not None:
        body["id"] = given.id
    body["outputs"] = described
    head = encode(body)
    if not raw:
        return Response(200, [("content-type", JSON)], head)
    return Response(200, [("content-type", BINARY), (JSON_LENGTH, str(len(head)))], head + b"".join(raw))

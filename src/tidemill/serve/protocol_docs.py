"""The protocols' addresses as OpenAPI describes them: KServe v1 and the Open Inference Protocol v2, with a model's own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill.core.schema import VALID_SUFFIX
from tidemill.serve import tensors
from tidemill.serve.http import JSON
from tidemill.serve.model import Model
from tidemill.serve.oip import BINARY, JSON_LENGTH
from tidemill.serve.routes import addresses

_TEXT: dict[str, Any] = {"type": "string"}
_OBJECT: dict[str, Any] = {"type": ["object", "null"]}

ERROR = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
"""An error as the protocols have it."""


def paths(model: Model, key: str, *, first: bool, errors: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The addresses of a model, each by its shortest name.

    Args:
        key: What the model's schemas are called by.
        first: Whether the model answers by its name alone.
        errors: Description by status of what an inference may be refused with.
    """
    tag = f"{model.name} {model.version}"
    v1, v2 = addresses("/v1", model, first=first)[0], addresses("/v2", model, first=first)[0]
    instance: dict[str, Any] = {"$ref": f"#/components/schemas/Record-{key}"}
    if model.text_column or model.image_column:  # the text or the image by itself, bytes as TensorFlow Serving writes them
        instance = {"anyOf": [instance, _TEXT, {"type": "object", "properties": {"b64": _TEXT}, "required": ["b64"]}]}
    many = {"type": "object", "properties": {"instances": {"type": "array", "items": instance}}}
    # Of a model of one answer they are that answer itself.
    answers = {"type": "object", "properties": {"predictions": {"type": "array"}}, "required": ["predictions"]}
    refused = {status: _told(text, ERROR) for status, text in errors.items()}

    def get(summary: str, properties: dict[str, Any]) -> dict[str, Any]:
        found = {"type": "object", "properties": properties, "required": list(properties)}
        stopping = {"503": _told("The server stops", found)} if "ready" in properties else {}
        return {"get": {"summary": summary, "tags": [tag], "responses": {"200": _told(summary, found), **stopping}}}

    def post(summary: str, taken: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        body = {"required": True, "content": {JSON: taken}}
        return {"post": {"summary": summary, "tags": [tag], "requestBody": body, "responses": {"200": given, **refused}}}

    ready = {"name": _TEXT, "ready": {"type": "boolean"}}
    yield v1, get("KServe v1: whether the model is ready", ready)
    yield f"{v1}:predict", post("KServe v1: many records", {"schema": {**many, "required": ["instances"]}}, _told("The answer", answers))
    yield f"{v2}/ready", get("Open Inference Protocol: whether the model is ready", ready)
    known = {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": _described(),
        "outputs": _described(),
    }
    yield v2, get("Open Inference Protocol: the model's versions, inputs and outputs", known)
    infer = post(
        "Open Inference Protocol: one named tensor for each raw column",
        {"schema": _infer_request(model), **({} if model.image_column else {"example": _infer_example(model)})},
        _told("The answer", _infer_answer()),
    )
    raw = {
        "type": "integer",
        "description": f"Length of the JSON where raw tensors follow it; the answer is {BINARY} where raw ones are asked for",
    }
    infer["post"]["parameters"] = [{"name": JSON_LENGTH, "in": "header", "required": False, "schema": {**raw, "minimum": 0}}]
    yield f"{v2}/infer", infer


def refusal(told: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal of plain REST, as the protocols write it."""
    return _told(told["description"], ERROR)


def _told(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": schema}}}


def _described() -> dict[str, Any]:
    """Tensors of a model's metadata."""
    sizes = {"type": "array", "items": {"type": "integer"}}
    tensor = {"name": _TEXT, "datatype": {"enum": list(tensors.NUMPY)}, "shape": sizes}
    return {"type": "array", "items": {"type": "object", "properties": tensor, "required": list(tensor)}}


def _infer_request(model: Model) -> dict[str, Any]:
    names = [name for column in model.schema for name in (column.name, *([column.name + VALID_SUFFIX] if column.type == "int64" else []))]
    tensor = {
        "name": {"enum": names},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "datatype": {"enum": list(tensors.NUMPY)},
        "data": {"type": "array", "description": "row-major, nested or flat; null stands for a missing value"},
        "parameters": _OBJECT,
    }
    output = {
        "name": {"enum": [name for name in model.form.fields if name in ("prediction", "probability", "interval")]},
        "parameters": _OBJECT,
    }
    lists = {
        name: {"type": kind, "items": {"type": "object", "properties": fields, "required": [field for field in fields if field in required]}}
        for name, kind, fields, required in (
            ("inputs", "array", tensor, ("name", "shape", "datatype")), ("outputs", ["array", "null"], output, ("name",)),
        )
    }  # fmt: skip
    return {"type": "object", "properties": {"id": {"type": ["string", "null"]}, "parameters": _OBJECT, **lists}, "required": ["inputs"]}


def _infer_example(model: Model) -> dict[str, Any]:
    arrays = model.signature.from_records([model.example])
    return {
        "inputs": [
            {"name": name, "shape": list(values.shape), "datatype": tensors.datatype(values), "data": values.ravel().tolist()}
            for name, values in arrays.items()
        ]
    }


def _infer_answer() -> dict[str, Any]:
    tensor: dict[str, Any] = {
        "name": _TEXT, "datatype": {"enum": list(tensors.NUMPY)}, "shape": {"type": "array", "items": {"type": "integer"}}, "data": {"type": "array"},
    }  # fmt: skip
    outputs = {"type": "array", "items": {"type": "object", "properties": tensor, "required": ["name", "datatype", "shape"]}}
    known = {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": outputs}
    return {"type": "object", "properties": known, "required": ["model_name", "model_version", "outputs"]}

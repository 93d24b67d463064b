"""`/docs` and `/openapi.json`: the API with each model's own fields and a live example, in one page that loads nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tidemill.core.schema import Column
from tidemill.serve import protocol_docs
from tidemill.serve.http import ARROW_FILE, ARROW_STREAM, JSON, encode
from tidemill.serve.model import Model

PAGE_HEADERS = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:",
    ),
    ("x-content-type-options", "nosniff"),
]

_TYPES: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "int64": {"type": "integer", "format": "int64"},
    "float32": {"type": "number", "format": "float"},
    "float64": {"type": "number", "format": "double"},
    "string": {"type": "string"},
    "timestamp": {"type": ["string", "integer"], "description": "ISO 8601 time (UTC where no zone is given), or microseconds since 1970"},
}


def page(models: Sequence[Model]) -> bytes:
    """The page as HTML; the first model is the default."""
    described = [
        {
            "name": model.name,
            "version": model.version,
            "task": model.package.task,
            "kind": model.package.kind,
            "at": "" if i == 0 else f"/models/{model.name}/versions/{model.version}",
            "text": model.text_column is not None,
            "columns": model.schema.to_json(),
            "classes": model.form.labels,
            "example": _example(model),
            "promises": model.promises,
        }
        for i, model in enumerate(models)
    ]
    content = encode({"models": described, "server": version("tidemill")}).decode().replace("<", "\\u003c")
    template = (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")
    return template.replace("{{content}}", content).encode()


def openapi(models: Sequence[Model], *, guarded: bool = False, limited: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 description.

    Args:
        guarded: Whether a credential is asked for.
        limited: Whether requests are counted.
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _error_schema()}
    for i, model in enumerate(models):
        key = f"{model.name}-{model.version}"
        schemas |= {
            f"Record-{key}": record_schema(model),
            f"Answer-{key}": _answer_schema(model),
            f"Row-{key}": _answer_schema(model, row=True),
        }
        for at in [*([""] if i == 0 else []), f"/models/{model.name}/versions/{model.version}"]:
            paths |= dict(_model_paths(at, model, key))
        first = all(model.name != other.name for other in models[:i])
        paths |= dict(protocol_docs.paths(model, key, first=first, errors=_TEXTS))
    for path, summary in _SERVER_PATHS.items():
        stopping = {"503": {"description": "The server stops"}} if path.endswith("/ready") else {}
        paths[path] = {"get": {"summary": summary, "tags": ["server"], "responses": {"200": _described(summary, path), **stopping}}}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Tidemill: {', '.join(dict.fromkeys(model.name for model in models))}", "version": version("tidemill")},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    refusals = {**(_errors(_GUARDED) if guarded else {}), **(_errors(_LIMITED) if limited else {})}
    for path, methods in paths.items():
        for method in methods.values() if "/health" not in path else ():
            added = (
                refusals
                if not path.startswith(("/v1", "/v2"))
                else {status: protocol_docs.refusal(told) for status, told in refusals.items()}
            )
            method["responses"] = {**method["responses"], **added}
            if guarded:
                method["security"] = [{"bearer": []}, {"key": []}]
    if guarded:
        header = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        made["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}, "key": header}
    return made


def record_schema(model: Model) -> dict[str, Any]:
    """JSON Schema of one record; fields that the model does not know are ignored."""
    example = _example(model)
    words = {model.text_column: "text", model.image_column: "image"}
    columns = {words.get(column.name, column.name): column for column in model.schema}
    return {
        "type": "object",
        "properties": {name: _column_schema(column) for name, column in columns.items()},
        "required": list(columns),
        "examples": [example],
    }


_SERVER_PATHS = {
    "/health": "Whether the server answers, and for which models",
    "/health/live": "Whether the process lives",
    "/health/ready": "Whether it takes requests: 503 while it stops",
    "/models": "The models of this server",
    "/metrics": "Metrics in the Prometheus text format",
    "/v2": "Open Inference Protocol: the server",
    "/v2/health/live": "Open Inference Protocol: whether the process lives",
    "/v2/health/ready": "Open Inference Protocol: whether it takes requests",
}


def _model_paths(at: str, model: Model, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tag = f"{model.name} {model.version}"
    record, answer, row = ({"$ref": f"#/components/schemas/{part}-{key}"} for part in ("Record", "Answer", "Row"))
    texts = {"type": "array", "items": {"type": "string"}}
    many = (
        {"texts": texts}
        if model.text_column
        else {"images": texts}
        if model.image_column
        else {"records": {"type": "array", "items": record}}
    )
    batch = {"type": "object", "properties": many, "required": list(many)}
    answers = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": row}, "model": {"type": "string"}, "version": {"type": "string"}},
    }
    arrow = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (ARROW_STREAM, ARROW_FILE)}

    def post(summary: str, taken: dict[str, Any], given: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        answered = {"200": {"description": "The answer", "content": {JSON: {"schema": given}, **more}}}
        body = {"required": True, "content": {JSON: {"schema": taken}, **more}}
        return {"post": {"summary": summary, "tags": [tag], "requestBody": body, "responses": {**answered, **_ERRORS}}}

    yield f"{at}/predict", post("One record", record, answer, {})
    yield f"{at}/predict_batch", post("Many records", batch, answers, arrow)
    yield f"{at}/model_info", {"get": {"summary": "What the model is", "tags": [tag], "responses": {"200": {"description": "The model"}}}}


def _described(summary: str, path: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else JSON
    return {"description": summary, "content": {kind: {"schema": {"type": "string" if kind != JSON else "object"}}}}


def _errors(texts: Mapping[str, str]) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


_GUARDED = {"401": "No valid credential", "403": "The credential does not reach so far"}
_LIMITED = {"429": "Too many requests; see `Retry-After`"}
_TEXTS = {
    "400": "The body is malformed", "408": "The body did not come in time", "413": "The body or the batch is too large",
    "415": "The media type is not taken", "422": "A field is missing or wrong; named in `error.field`",
    "503": "More is asked than can be answered in time, or the server stops; see `Retry-After`", "504": "The request's time is over",
}  # fmt: skip
_ERRORS = _errors(_TEXTS)


def _column_schema(column: Column) -> dict[str, Any]:
    made = dict(_TYPES[column.type])
    if column.nullable:
        kinds = made["type"] if isinstance(made["type"], list) else [made["type"]]
        made["type"] = [*kinds, "null"]
    return made


def _answer_schema(model: Model, *, row: bool = False) -> dict[str, Any]:
    sample = model.example_answer.prediction
    number = {"type": ["number", "null"]}
    prediction: dict[str, Any] = {"enum": model.form.classes} if model.form.classes else number
    if sample.ndim == 2 and sample.shape[1] > 1:
        prediction = {"type": "array", "items": number}
    by_class = {"type": "object", "properties": dict.fromkeys(model.form.labels, number)}
    kinds: dict[str, Any] = {
        "prediction": prediction,
        "probability": {**number, "description": f"of {model.form.labels[1]}"} if len(model.form.labels) == 2 else by_class,
    }
    if model.form.interval is not None:
        told = f"low and high: holds the true value of {model.form.interval:.0%} of rows"
        kinds["interval"] = {"type": "array", "items": number, "minItems": 2, "maxItems": 2, "description": told}
    properties = {name: kinds.get(name, number if name in ("confidence", "score") else {"type": "string"}) for name in model.form.fields}
    if not row:
        properties |= {"model": {"type": "string"}, "version": {"type": "string"}}
    return {"type": "object", "properties": properties}


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    parts = {"field": text, "reason": {"type": "string"}, "hint": text}
    return {"type": "object", "properties": {"error": {"type": "object", "properties": parts}}}


def _example(model: Model) -> dict[str, Any]:
    """The example as the page shows it: the one column of a text package is called `text`."""
    if model.image_column:
        return {"image": model.example.get(model.image_column, "")}
    return {"text": model.example.get(model.text_column, "")} if model.text_column else dict(model.example)

"""Plain REST: `/predict`, `/predict_batch`, `/model_info`; records in JSON, or Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidemill.core.graph import Arrays
from tidemill.core.image import ImageSignature
from tidemill.core.package import Answers
from tidemill.serve import arrow
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import ARROW_FILE, ARROW_STREAM, JSON, Refused, Request, Response, json_response, read_json
from tidemill.serve.model import Model
from tidemill.serve.routes import Route, Work, addresses

# curl sends the second without being told otherwise; a JSON body is read all the same.
_JSON_TYPES = ("", JSON, "application/x-www-form-urlencoded", "text/plain", "text/json")


def routes(model: Model, config: ServeConfig, *, default: bool, first: bool) -> Iterator[Route]:
    """The addresses of one model: `/predict` for the default one, `/models/<name>/predict` for each."""

    def encode(answers: Answers) -> Response:
        return encode_row(model.form.rows(answers)[0])

    def encode_row(row: dict[str, Any]) -> Response:
        row["model"] = model.name
        row["version"] = model.version
        return json_response(row)

    def one(request: Request) -> Response | Work:
        given, values = read_one(request, model)
        return Work(model, given, 1, encode, values, encode_row)

    def batch(request: Request) -> Response | Work:
        return read_batch(request, model, config)

    def info(_: Request) -> Response:
        return json_response(model.info())

    for at in [*([""] if default else []), *addresses("", model, first=first)]:
        label = "/models/{model}" if at else ""
        yield Route(
            method="POST", path=f"{at}/predict", label=f"{label}/predict", handle=one, model=model, verb="predict", subject=model.name
        )
        yield Route(
            method="POST",
            path=f"{at}/predict_batch",
            label=f"{label}/predict_batch",
            handle=batch,
            model=model,
            verb="predict",
            subject=model.name,
        )
        yield Route(method="GET", path=f"{at}/model_info", label=f"{label}/model_info", handle=info, subject=model.name)


def read_one(request: Request, model: Model) -> tuple[Arrays | None, tuple[Any, ...] | None]:
    """One record, an object of fields: as graph inputs, or as the values that the model's reader took.

    Raises:
        Refused: If the body is no such JSON; 415 for another media type.
        DataError: If a field is missing or wrong; names it.
    """
    kind = request.content_type
    if kind.startswith("image/") and isinstance(model.signature, ImageSignature):
        return model.signature.from_bytes([request.body]), None
    _check_json(kind)
    if model.reader is not None and (values := model.reader.read(request.body)) is not None:
        return None, values
    record = read_json(request.body)
    if type(record) is not dict:
        raise Refused(
            422, "field", f"the body must be one record, an object of fields, got {_kind(record)}", hint="many records go to /predict_batch"
        )
    return model.signature.from_record(_named(record, model)), None


def read_batch(request: Request, model: Model, config: ServeConfig) -> Work:
    """Many records: `{"records": [...]}`, `{"texts": [...]}` for a text package, `{"images": [...]}` in base64 for an image package, or an Arrow stream or file.

    Raises:
        Refused: If the body is none of these, holds no row or too many.
        DataError: If a field is missing or wrong; names it.
    """
    kind = request.content_type
    if kind in (ARROW_STREAM, ARROW_FILE):
        table = arrow.read(request.body, kind, max_bytes=int(config.max_body_mb * 1e6))
        rows = check_rows(table.num_rows, config)
        inputs = model.signature.from_arrow(table)
        reply = JSON if request.accepts(JSON) else kind
    else:
        body = _json_body(request)
        records = records_of(body, model, "records")
        rows = check_rows(len(records), config)
        inputs = model.signature.from_records(records)
        reply = next((kind for kind in (ARROW_STREAM, ARROW_FILE) if request.accepts(kind)), JSON)
        if reply != JSON:
            arrow.library()
    return Work(model, inputs, rows, _batch_encoder(model, reply))


def records_of(body: Any, model: Model, key: str) -> list[Mapping[str, Any]]:
    """The records under `key`, or those that `texts` stands for.

    Raises:
        Refused: With 422, if the body has no such list.
    """
    if type(body) is not dict:
        raise Refused(422, "field", f"the body must be an object with {key!r}, got {_kind(body)}")
    column = model.text_column or model.image_column
    many = "texts" if model.text_column else "images"
    if column is not None and many in body and key not in body:
        key, records = many, body[many]
        if type(records) is list:
            records = [{column: value} for value in records]
    else:
        records = body.get(key)
    if type(records) is not list:
        got = "no such field" if key not in body else _kind(records)
        also = f" or {many!r}" if column is not None else ""
        raise Refused(422, "field", f"{key!r}{also} must be a list, got {got}", field=key)
    return records if column is None else [_named(record, model) for record in records]


def _named(record: Any, model: Model) -> Any:
    """The record, with its one column by its own name where it was called `text` or `image`."""
    column, word = model.text_column or model.image_column, "text" if model.text_column else "image"
    if column is None or type(record) is not dict or column in record or word not in record:
        return record
    return {column: record[word]}


def check_rows(rows: int, config: ServeConfig) -> int:
    """`rows`, where a request may hold that many.

    Raises:
        Refused: With 422 for none, with 413 for too many.
    """
    if rows == 0:
        raise Refused(422, "field", "at least one row must be given, got none")
    if rows > config.max_batch_rows:
        raise Refused(413, "too_large", f"at most {config.max_batch_rows} rows may be sent at once, got {rows}", hint="send them in parts")
    return rows


def _batch_encoder(model: Model, reply: str) -> Callable[[Answers], Response]:
    def as_json(answers: Answers) -> Response:
        return json_response({"predictions": model.form.rows(answers), "model": model.name, "version": model.version})

    def as_arrow(answers: Answers) -> Response:
        return Response(200, [("content-type", reply)], arrow.write(model.form.columns(answers), reply))

    return as_json if reply == JSON else as_arrow


def _json_body(request: Request) -> Any:
    _check_json(request.content_type)
    return read_json(request.body)


def _check_json(kind: str) -> None:
    if kind not in _JSON_TYPES and not kind.endswith("+json"):
        known = f"{JSON}, and on /predict_batch {ARROW_STREAM} and {ARROW_FILE}"
        raise Refused(415, "media_type", f"the body must be {JSON}, got {kind}", hint=f"taken are {known}")


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

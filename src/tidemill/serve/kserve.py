"""KServe's and TensorFlow Serving's first protocol: `POST /v1/models/<name>:predict` with `{"instances": [...]}`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tidemill.core.package import Answers
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response, json_response, read_json
from tidemill.serve.model import Model
from tidemill.serve.plain import check_rows, records_of
from tidemill.serve.routes import Route, Work, addresses


def routes(model: Model, config: ServeConfig, *, first: bool, is_ready: Callable[[], bool]) -> Iterator[Route]:
    """The addresses of one model."""

    def ready(_: Request) -> Response:
        return json_response({"name": model.name, "ready": is_ready()}, 200 if is_ready() else 503)

    def predict(request: Request) -> Response | Work:
        return read_instances(request, model, config)

    for at in addresses("/v1", model, first=first):
        yield Route(method="GET", path=at, label="/v1/models/{model}", handle=ready, plain=False, subject=model.name)
        yield Route(
            method="POST",
            path=f"{at}:predict",
            label="/v1/models/{model}:predict",
            handle=predict,
            model=model,
            plain=False,
            verb="predict",
            subject=model.name,
        )


def list_route(names: list[str]) -> Route:
    def models(_: Request) -> Response:
        return json_response({"models": names})

    return Route(method="GET", path="/v1/models", label="/v1/models", handle=models, plain=False)


def read_instances(request: Request, model: Model, config: ServeConfig) -> Work:
    """Instances are records, or texts for a text package. One output comes back as plain values, several as objects.

    Raises:
        Refused: If the body is no such request.
        DataError: If a field is missing or wrong; names it.
    """
    body = read_json(request.body)
    column = model.text_column or model.image_column
    if column is not None and type(body) is dict and type(body.get("instances")) is list:
        body = {**body, "instances": [{column: item} if _is_value(item) else item for item in body["instances"]]}
    records = records_of(body, model, "instances")
    rows = check_rows(len(records), config)

    def encode(answers: Answers) -> Response:
        made: list[Any] = model.form.rows(answers)
        if len(model.form.fields) == 1:
            made = [row["prediction"] for row in made]
        return json_response({"predictions": made})

    return Work(model, model.signature.from_records(records), rows, encode)


def _is_value(item: Any) -> bool:
    """Whether an instance is a text or an image itself, `{"b64": ...}` as TensorFlow Serving writes bytes, and no record."""
    return type(item) is str or (type(item) is dict and list(item) == ["b64"])

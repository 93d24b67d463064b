from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.serve import docs
from tidemill.serve.http import Response
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

Ask = Callable[..., tuple[int, Any]]
Send = Callable[..., Response]


def test_openapi_has_the_models_own_fields_and_an_example(ask: Ask) -> None:
    status, api = ask("GET", "/openapi.json")
    assert (status, api["openapi"]) == (200, "3.1.0")
    taken = api["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    record = api["components"]["schemas"][taken.rpartition("/")[2]]
    assert record["required"] == list(EXAMPLE)
    assert record["properties"]["seats"] == {"type": ["integer", "null"], "format": "int64"}
    assert record["examples"] == [EXAMPLE]
    answer = api["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert list(api["components"]["schemas"][answer.rpartition("/")[2]]["properties"]) == ["prediction", "probability", "model", "version"]


def test_openapi_points_nowhere_outside_itself(ask: Ask) -> None:
    _, api = ask("GET", "/openapi.json")
    for ref in re.findall(r'"\$ref": "([^"]+)"', json.dumps(api)):
        found: Any = api
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]


def test_every_address_of_openapi_answers(ask: Ask, send: Send) -> None:
    _, api = ask("GET", "/openapi.json")
    for path, methods in api["paths"].items():
        for method in methods:
            body = {"text": "a"} if "/text/" in path or "/embedding/" in path else EXAMPLE
            example = methods[method].get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            status = send(method.upper(), path, example or body).status
            assert status == 200 if example or method == "get" else status in (200, 422), path


def test_the_page_loads_nothing_from_elsewhere(send: Send) -> None:
    response = send("GET", "/docs")
    page = response.body.decode()
    assert dict(response.headers)["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in dict(response.headers)["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import""", page)
    assert '"name":"binary"' in page
    assert send("GET", "/", accept="text/html,*/*").headers[0] == ("location", "/docs")
    assert json.loads(send("GET", "/").body) == {"status": "alive"}


def test_a_models_words_cannot_leave_the_data_of_the_page(tmp_path: Path) -> None:
    model = Model(tiny_package(tmp_path / "p", task="text", classes=["</script><b>", "{{content}}"]))
    page = docs.page([model]).decode()
    assert "</script><b>" not in page
    assert json.loads(re.findall(r'id="content">(.*?)</script>', page)[0])["models"][0]["classes"] == ["</script><b>", "{{content}}"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "text", "embedding"])
def test_a_real_answer_has_the_fields_that_openapi_says(ask: Ask, task: str) -> None:
    _, api = ask("GET", "/openapi.json")
    body = {"text": "great"} if task in ("text", "embedding") else EXAMPLE
    _, answer = ask("POST", f"/models/{task}/predict", body)
    schema = next(value for key, value in api["components"]["schemas"].items() if key.startswith(f"Answer-{task}"))
    assert list(schema["properties"]) == list(answer)

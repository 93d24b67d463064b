"""Requests drawn from the server's own OpenAPI description, right ones and wrong ones: what it says is what comes."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tidemill.core.events import Event, Events
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import tiny_package

pytestmark = pytest.mark.server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TASKS = ("binary", "interval", "text")


@pytest.fixture(scope="module")
def seen() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, seen: list[Event]) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    packages = [tiny_package(folder / task, task=task, name=task, version="3") for task in TASKS]
    ready: queue.Queue[Running] = queue.Queue()
    more = {"config": ServeConfig(port=0), "on_ready": ready.put, "events": Events(seen.append)}
    thread = threading.Thread(target=serve, args=(packages,), kwargs=more)
    thread.start()
    running = ready.get(timeout=60)
    yield running.url
    running.stop()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_server_answers_as_it_describes_itself(server: str, seen: list[Event], mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json", config=SchemathesisConfig())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        if operation.method == "get":
            assert (mode == GenerationMode.NEGATIVE) or operation.Case().call_and_validate(checks=CHECKS).status_code == 200
        else:
            statuses = asked(operation, mode)
            # Of right requests some get through everywhere: what the description leaves open, such as the text of a time, may be refused.
            assert (mode == GenerationMode.NEGATIVE) or statuses[200], (operation.path, statuses)
    assert not [event for event in seen if event.level == "error"]


def asked(operation: Any, mode: GenerationMode) -> Counter[int]:
    """How often the server answered with which status."""
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=settings().max_examples // 2, suppress_health_check=list(HealthCheck))
    def answers(case: schemathesis.Case) -> None:
        statuses[case.call_and_validate(checks=[*CHECKS, negative_data_rejection]).status_code] += 1

    answers()
    return statuses

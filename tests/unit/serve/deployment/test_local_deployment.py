"""The models of a process: what answers no more leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from tidemill.core.events import Events
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.local import Deployment
from tidemill.serve.deployment.slot import Slot, slot_of
from tidemill.serve.http import Request
from tidemill.serve.replicas.config import ReplicasConfig
from tidemill.testing.packages import EXAMPLE, tiny_package


@pytest.fixture
def circles_stay() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def ask(app: App) -> int:
    body = json.dumps(EXAMPLE).encode()
    return app.handle(Request("POST", "/predict", "", {"content-type": "application/json"}, body, perf_counter(), "127.0.0.1")).status


def slots(folder: Path, *versions: str) -> list[Slot]:
    return [slot_of(tiny_package(folder / version, version=version)) for version in versions]


@pytest.mark.usefixtures("circles_stay")
@pytest.mark.parametrize("inline_ms", [1000.0, 0.0], ids=["on the loop", "queued"])
def test_a_model_that_was_replaced_is_gone_without_a_search_for_circles(
    tmp_path: Path, inline_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    first, second = slots(tmp_path, "1", "2")
    deployment = Deployment(ServeConfig(inline_ms=inline_ms), events=Events())
    app = deployment.start([first])
    try:
        assert ask(app) == 200
        gone = weakref.ref(app.models[0])
        deployment.prepare([second])
        deployment.commit()
        for thread in threading.enumerate():
            if thread.name == "retire":
                thread.join(30)
        del thread
        assert ask(app) == 200
        assert app.models[0].version == "2"
        assert gone() is None
    finally:
        app.close()


@pytest.mark.parametrize(("replicas", "runners"), [(1, 4), (2, 2), (3, 1), (8, 1), ("auto", 4), (ReplicasConfig(min=2, max=4), 2)])
def test_replicas_share_the_cores(tmp_path: Path, replicas: Any, runners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    [slot] = slots(tmp_path, "share")
    deployment = Deployment(ServeConfig(replicas=replicas, inline_ms=0.0), events=Events())
    app = deployment.start([slot])
    try:
        assert ask(app) == 200
        name = app.models[0].name
        assert sum(thread.name.startswith(f"{name}-") for thread in threading.enumerate()) == runners
    finally:
        app.close()

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tidemill.serve.app import App
from tidemill.serve.http import Response
from tidemill.serve.metrics import BUCKETS, Distribution, Family, Metrics, Sample
from tidemill.testing.packages import EXAMPLE

Send = Callable[..., Response]

LINE = re.compile(r'^(\w+)(?:\{(\w+="(?:[^"\\]|\\.)*"(?:,\w+="(?:[^"\\]|\\.)*")*)\})? (\S+)$')


def parsed(text: str) -> dict[str, float]:
    """Sample to value; fails on a line that is not of the text format."""
    found, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.match(line)
            assert match, line
            base = re.sub(r"_(bucket|sum|count)$", "", match[1])
            assert match[1] in kinds or kinds.get(base) == "histogram", line
            found[line.rpartition(" ")[0]] = float(match[3])
    return found


def test_requests_rows_phases_and_errors_are_counted(app: App, send: Send) -> None:
    for _ in range(3):
        send("POST", "/predict", EXAMPLE)
    send("POST", "/predict_batch", {"records": [EXAMPLE] * 5})
    send("POST", "/predict", {})
    send("POST", "/v2/models/binary/infer", b"{")
    response = send("GET", "/metrics")
    assert dict(response.headers)["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = parsed(response.body.decode())
    assert found['tidemill_requests_total{route="/predict",status="200"}'] == 3
    assert found['tidemill_requests_total{route="/predict",status="422"}'] == 1
    assert found['tidemill_requests_total{route="/v2/models/{model}/infer",status="400"}'] == 1
    assert found['tidemill_rows_total{model="binary",version="3"}'] == 8
    assert found['tidemill_executions_total{model="binary",version="3"}'] == 4
    assert found['tidemill_errors_total{reason="field"}'] == 1
    assert found['tidemill_errors_total{reason="malformed"}'] == 1
    assert found['tidemill_request_duration_seconds_count{route="/predict"}'] == 4
    for phase in ("queue", "preprocess", "infer", "postprocess"):
        assert found[f'tidemill_phase_duration_seconds_count{{model="binary",version="3",phase="{phase}"}}'] == 4
    identity = app.models[0].package.identity
    assert found[f'tidemill_model_info{{model="binary",version="3",identity="{identity}",task="binary"}}'] == 1
    assert found["tidemill_process_resident_memory_bytes"] > 1e6


def test_every_metric_has_the_prefix_and_its_unit() -> None:
    families = [family for family in vars(Metrics()).values() if isinstance(family, Family)]
    for family in families:
        assert re.fullmatch(r"tidemill_(replicas|\w+?(_total|_seconds|_bytes|_info|_in_flight|_rows))", family.name), family.name
    assert len({family.name for family in families}) == len(families)


def test_what_callers_send_never_becomes_a_label(app: App, send: Send) -> None:
    for i in range(50):
        send("GET", f"/no/such/{i}")
        send("POST", f"/models/none{i}/predict", EXAMPLE)
        send(f"VERB{i}", "/predict")
    lines = app.metrics.render().decode().splitlines()
    assert len([line for line in lines if line.startswith("tidemill_requests_total")]) == 2


def test_a_distribution_counts_up_to_each_bound() -> None:
    family = Family(Distribution, "tidemill_a_seconds", "histogram", "A.", ("route",))
    for value in (0.0, BUCKETS[0], 0.3, 99.0):
        family.sample("/a").observe(value)
    found = parsed(family.render())
    assert found[f'tidemill_a_seconds_bucket{{route="/a",le="{BUCKETS[0]!r}"}}'] == 2
    assert found['tidemill_a_seconds_bucket{route="/a",le="0.5"}'] == 3
    assert found['tidemill_a_seconds_bucket{route="/a",le="+Inf"}'] == found['tidemill_a_seconds_count{route="/a"}'] == 4
    assert found['tidemill_a_seconds_sum{route="/a"}'] == pytest.approx(99.30005)


def test_label_values_are_escaped() -> None:
    family = Family(Sample, "tidemill_a_total", "counter", "A.", ("model",))
    family.sample('a"b\\c\nd').value = 1
    assert family.render().splitlines()[-1] == r'tidemill_a_total{model="a\"b\\c\nd"} 1'


def test_counts_from_many_threads_add_up(app: App, send: Send) -> None:
    def work() -> None:
        for _ in range(100):
            send("POST", "/predict", EXAMPLE)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[str, Any] = parsed(app.metrics.render().decode())
    assert found['tidemill_requests_total{route="/predict",status="200"}'] == 400
    assert found['tidemill_rows_total{model="binary",version="3"}'] == 400

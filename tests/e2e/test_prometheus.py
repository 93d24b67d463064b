"""The metrics as Prometheus itself reads them: its checker finds nothing, its server answers the questions that the documentation suggests."""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = pytest.mark.server

# Questions, and whether their answer must be above 0.
QUERIES = {
    'sum(tidemill_requests_total{status="200",route="/predict"})': True,
    "histogram_quantile(0.99, sum by (le) (tidemill_request_duration_seconds_bucket))": True,
    'sum(tidemill_phase_duration_seconds_sum{phase="infer"}) / sum(tidemill_phase_duration_seconds_count{phase="infer"})': True,
    "sum(tidemill_rows_total) / sum(tidemill_executions_total)": True,
    "histogram_quantile(0.5, sum by (le) (tidemill_batch_rows_bucket))": True,
    'tidemill_errors_total{reason="malformed"}': True,
    'tidemill_errors_total{reason="field"}': True,
    'sum(tidemill_cache_rows_total{outcome="hit"}) / sum(tidemill_cache_rows_total)': True,
    "tidemill_process_cpu_seconds_total": True,
    "tidemill_process_resident_memory_bytes": True,
    "time() - tidemill_start_time_seconds": True,
    "tidemill_requests_in_flight": True,
    'count(tidemill_phase_duration_seconds_count{model="rows"})': True,
    "up": True,
}


@pytest.fixture
def server(serving: Any, tmp_path: Path) -> Any:
    package = tiny_package(tmp_path / "rows", name="rows", version="1")
    with serving.served(package.path, cache={"max": "1MiB"}) as running:
        for i in range(40):
            assert running.post("/predict", {**EXAMPLE, "distance": float(i % 20)})[0] == 200
        assert running.post("/predict_batch", {"records": [EXAMPLE] * 30})[0] == 200
        assert running.post("/predict", {})[0] == 422
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
        connection.request("POST", "/predict", b"{")
        assert connection.getresponse().status == 400
        connection.close()
        yield running


def test_its_checker_finds_nothing(server: Any, server_program: Callable[..., Path]) -> None:
    promtool = server_program("promtool", package="prometheus")
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        text = response.read()
    done = subprocess.run([str(promtool), "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_its_server_answers_questions(
    server: Any, serving: Any, server_program: Callable[..., Path], free_port: int, tmp_path: Path
) -> None:
    prometheus = server_program("prometheus")
    address = server.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "tidemill", "static_configs": [{"targets": [address]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # YAML takes JSON
    command = [
        str(prometheus), f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{free_port}", "--log.level=error",
    ]  # fmt: skip

    def asked(query: str) -> list[float]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{free_port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            ) as response:
                found = json.loads(response.read())["data"]["result"]
        except OSError:
            return []
        return [float(one["value"][1]) for one in found]

    with subprocess.Popen(command, cwd=tmp_path) as process:
        try:
            serving.until(lambda: asked("up") == [1.0] and asked("tidemill_rows_total"))
            answers = {query: asked(query) for query in QUERIES}
            assert [query for query, found in answers.items() if not found or not all(value > 0 for value in found)] == []
            assert answers["tidemill_requests_in_flight"] == [1.0]  # its own
            rows, executions = asked("sum(tidemill_rows_total)"), asked("sum(tidemill_executions_total)")
            assert (rows, executions) == ([70.0], [21.0])
        finally:
            process.terminate()
            process.wait()

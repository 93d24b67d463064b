"""The servers that are compared: how each is started, what its requests look like, where its answer stands; and one that runs.

Settings are the same for all that have them: two workers of one thread each, batches of at most 32 rows, 5 ms to wait for them. Metrics are
as each has them by default, logs of requests off where there is a switch.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from environments import CACHE, environment, variables
from load import JSON, largest_difference
from machine import marked, pss_mib
from workloads import TIDEMILL, Workload

PEERS = Path(__file__).parent / "peers"
LOGS = CACHE / "logs"
START_LIMIT_S = 90.0

Form = Literal["record", "list", "tensors"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """One way to serve a workload; ours where it has no environment of its own."""

    name: str
    command: tuple[str, ...]
    """`{port}`, `{port2}`, `{port3}`, `{package}` and `{scratch}` are put in."""
    settings: str
    """What the results say of it."""
    environment: str | None = None
    form: Form = "record"
    """record: the row as an object; list: that object in a list; tensors: the inference protocol in JSON, numbers in one tensor and texts in another."""
    path: str = "/predict"
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path, Mapping[str, str]], None] | None = None
    """Writes the files that it is started with into a folder."""
    batches: bool = True
    warm_up_s: float = 2.0
    tolerance: float | None = None
    """In place of the workload's, for another precision."""

    def body(self, record: Mapping[str, Any]) -> Any:
        if self.form == "record":
            return record
        if self.form == "list":
            return {"records": [record]}
        tensors = []
        numbers = [value for value in record.values() if not isinstance(value, str)]
        texts = [value for value in record.values() if isinstance(value, str)]
        name = "" if numbers and texts else "x"
        if numbers:
            tensors.append({"name": name or "numbers", "shape": [1, len(numbers)], "datatype": "FP32", "data": numbers})
        if texts:
            tensors.append({"name": name or "texts", "shape": [1, len(texts)], "datatype": "BYTES", "data": texts})
        return {"inputs": tensors}

    def answer(self, body: Any) -> np.ndarray:
        """The number, or the embedding, that an answer holds."""
        if self.form == "tensors":
            return np.ravel(body["outputs"][0]["data"])
        if self.form == "list":
            return np.ravel(body[0])
        if self.environment is None:
            return np.ravel(body["probability"] if "probability" in body else body["prediction"])
        return np.ravel(body["answer"])

    def bodies(self, workload: Workload) -> Path:
        """The file with this server's requests, one a line."""
        path = workload.folder / f"bodies-{self.form}.jsonl"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(
                "".join(json.dumps(self.body(record), separators=(",", ":")) + "\n" for record in workload.records), encoding="utf-8"
            )
            partial.rename(path)
        return path


class Running:
    """A server that answers a workload, until its `with` ends; `start_s` is from its launch to its first right answer.

    Raises:
        RuntimeError: If it ends, or has given no right answer within a minute and a half; with the end of its log.
    """

    def __init__(self, server: Server, workload: Workload) -> None:
        self.server = server
        self.workload = workload
        self.bodies = server.bodies(workload)
        self._tolerance = server.tolerance or workload.tolerance
        self.port, self._ports = free_ports()
        self._mark = f"TIDEMILL_BENCHMARK={os.getpid()}-{self.port}"
        self._scratch = tempfile.TemporaryDirectory()
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{workload.name}-{server.name}.log".replace(" ", "-")
        self.start_s = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def pids(self) -> list[int]:
        return marked(self._mark)

    def pss_mib(self) -> float:
        return pss_mib(self.pids())

    def check(self, *, requests: int, connections: int) -> float:
        """The largest difference from the right answers.

        Raises:
            RuntimeError: If it is beyond the workload's tolerance, or a request is refused.
        """
        found = largest_difference(self.port, self.server.path, self.bodies, self._differs, requests=requests, connections=connections)
        if not found <= self._tolerance:
            raise RuntimeError(
                f"{self.server.name}: answers must be right within {self._tolerance:g}, got {found:g} ({self.workload.name})"
            )
        return found

    def _differs(self, place: int, body: Any) -> float:
        return float(np.abs(self.server.answer(body) - np.ravel(self.workload.right[place])).max())

    def _start(self) -> float:
        server, scratch = self.server, Path(self._scratch.name)
        names = {**self._ports, "package": str(self.workload.package), "scratch": str(scratch)}
        given = {
            "WORKLOAD": self.workload.name, "FOLDER": str(self.workload.folder), "THREADS": str(server.threads), "PEERS": str(PEERS),
            "PYTHONPATH": str(PEERS), "PORT": names["port"], "PORT2": names["port2"], "PORT3": names["port3"],
        }  # fmt: skip
        own = {**variables(server.environment), **given, **server.variables} if server.environment is not None else server.variables
        mark, _, value = self._mark.partition("=")
        whole = {**os.environ, **own, mark: value}
        if server.prepare is not None:
            server.prepare(scratch, names)
        command = [part.format(**names) for part in server.command]
        if server.environment is not None:
            command[0] = str(environment(server.environment) / "bin" / command[0])
        started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=scratch, env=whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait(started)
        except BaseException:
            self._stop()
            raise
        return time.perf_counter() - started

    def _wait(self, started: float) -> None:
        first = self.bodies.open("rb").readline().strip()
        said = ""
        while time.perf_counter() - started < START_LIMIT_S and self._process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                connection.request("POST", self.server.path, first, JSON)
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                if answer.status == 200 and self._differs(0, json.loads(body)) <= self._tolerance:
                    return
                said = f"{answer.status} {body[:500]!r}"
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
            time.sleep(0.01)
        end = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{self.server.name} must answer {self.workload.name} rightly, it does not: {said}\n{end}")

    def _stop(self) -> None:
        for number, patience_s in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
            targets = [self._process.pid] if number == signal.SIGTERM and self._process.poll() is None else self.pids()
            for pid in targets:
                with suppress(OSError):
                    os.kill(pid, number)
            until = time.monotonic() + patience_s
            while time.monotonic() < until:
                self._process.poll()
                if not (left := self.pids()):
                    break
                # What outlives its parent gets the word itself.
                if number == signal.SIGTERM and self._process.returncode is not None:
                    for pid in left:
                        with suppress(OSError):
                            os.kill(pid, number)
                time.sleep(0.05)
        self._process.wait(timeout=10)
        self._scratch.cleanup()


def free_ports() -> tuple[int, dict[str, str]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports[0], dict(zip(("port", "port2", "port3"), map(str, ports), strict=True))


def ours(name: str, settings: str, *options: str, tolerance: float | None = None) -> Server:
    """`tidemill serve` as a user starts it: metrics on, prediction log off, defaults but for what `options` say."""
    sets = tuple(part for option in options for part in ("--set", f"serve.{option}"))
    command = (TIDEMILL, "serve", "{package}", "--port", "{port}", "--quiet", *sets)
    return Server(name=name, command=command, settings=settings, batches=False, tolerance=tolerance)


def fastapi(workers: int, threads: int, name: str | None = None, **given: str) -> Server:
    command = ("uvicorn", "fastapi_app:app", "--port", "{port}", "--no-access-log", "--log-level", "warning", "--workers", str(workers))
    return Server(
        name=name or f"fastapi-{workers}", environment="fastapi", command=command, threads=threads, batches=False, variables=given,
        settings=f"{workers} {'workers' if workers > 1 else 'worker'}, {threads} {'threads' if threads > 1 else 'thread'} each, no batching",
    )  # fmt: skip


def mlserver_files(folder: Path, names: Mapping[str, str]) -> None:
    settings = {
        "host": "127.0.0.1",
        "http_port": int(names["port"]),
        "grpc_port": int(names["port2"]),
        "metrics_port": int(names["port3"]),
        "parallel_workers": 2,
        "debug": False,
    }
    model = {"name": "model", "implementation": "mlserver_runtime.Runtime", "max_batch_size": 32, "max_batch_time": 0.005}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")


def torchserve_files(folder: Path, names: Mapping[str, str]) -> None:
    model = {
        "defaultVersion": True,
        "marName": "model.mar",
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 32,
        "maxBatchDelay": 5,
        "responseTimeout": 60,
    }
    lines = {
        "inference_address": f"http://127.0.0.1:{names['port']}",
        "management_address": f"http://127.0.0.1:{names['port2']}",
        "metrics_address": f"http://127.0.0.1:{names['port3']}",
        "disable_token_authorization": "true",
        "models": json.dumps({"model": {"1.0": model}}),
        "load_models": "model.mar",
    }
    (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in lines.items()), encoding="utf-8")
    archive = [
        str(environment("torchserve") / "bin" / "torch-model-archiver"),
        "--model-name",
        "model",
        "--version",
        "1.0",
        "--handler",
        str(PEERS / "torchserve_handler.py"),
    ]
    subprocess.run([*archive, "--export-path", str(folder)], check=True, env={**os.environ, **variables("torchserve")}, capture_output=True)


def torchserve(name: str, **given: str) -> Server:
    command = ("torchserve", "--start", "--foreground", "--ncs", "--ts-config", "{scratch}/config.properties", "--model-store", "{scratch}")
    return Server(
        name=name, environment="torchserve", command=command, path="/predictions/model", prepare=torchserve_files, variables=given,
        settings="2 workers, 1 thread each, batches of 32, 5 ms", warm_up_s=10.0,  # Java compiles what it runs often
    )  # fmt: skip


TRITON = "/v2/models/model/infer"
OURS = [
    ours("tidemill", "fp32", "precision=fp32"),
    ours("tidemill-2", "fp32, 2 replicas", "precision=fp32", "replicas=2"),
    ours("tidemill-bf16", "defaults: bfloat16, as the text package's contract allows", tolerance=5e-3),
]
OTHERS = [
    fastapi(1, 2),
    fastapi(2, 1),
    Server(name="litserve", environment="litserve", command=("python", str(PEERS / "litserve_app.py")), settings="2 workers, 1 thread each, batches of 32, 5 ms"),
    Server(
        name="bentoml", environment="bentoml", command=("bentoml", "serve", "bentoml_app:Service", "--host", "127.0.0.1", "--port", "{port}"), form="list",
        variables={"BENTOML_DO_NOT_TRACK": "True"}, settings="2 workers, 1 thread each, batches of 32, at most 10 s",
    ),
    Server(
        name="ray", environment="ray", command=("python", str(PEERS / "ray_app.py")), variables={"RAY_USAGE_STATS_ENABLED": "0"},
        settings="2 replicas, 1 thread each, batches of 32, 5 ms",
    ),
    Server(
        name="mlserver", environment="mlserver", command=("mlserver", "start", "{scratch}"), path=TRITON, form="tensors", prepare=mlserver_files,
        settings="2 workers, 1 thread each, batches of 32, 5 ms",
    ),
    torchserve("torchserve"),
    Server(
        name="pytriton", environment="pytriton", command=("python", str(PEERS / "pytriton_app.py")), path=TRITON, form="tensors", threads=2,
        settings="1 instance, 2 threads, batches of 32, 5 ms",
    ),
]  # fmt: skip
# Not peers of the claims: what the graph in place of XGBoost does for the two that matter most.
CONTROLS = [fastapi(2, 1, "fastapi-2-graph", RUNTIME="onnx"), torchserve("torchserve-graph", RUNTIME="onnx")]
SERVERS = {server.name: server for server in (*OURS, *OTHERS, *CONTROLS)}

"""Callers that ask a server all the time and note what fails, and servers of a ledger as processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

from tidemill.testing.packages import EXAMPLE

PATIENCE_S = 60.0


@dataclass
class Served:
    """A running `tidemill serve`."""

    process: subprocess.Popen[str]
    url: str
    grpc: str | None
    log: list[dict[str, Any]] = field(default_factory=list)

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=PATIENCE_S) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE_S)
        connection.request("POST", path, json.dumps({} if body is None else body))
        answer = connection.getresponse()
        status, content = answer.status, json.loads(answer.read())
        connection.close()
        return status, content

    def metric(self, line: str) -> float:
        """The value of the samples whose line begins so, added up."""
        with urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        return sum(float(text.rpartition(" ")[2]) for text in lines if text.startswith(line))

    def replicas(self) -> list[int]:
        """Process ids of replicas, those that start now included."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted({int(pid) for file in children for pid in file.read_text(encoding="ascii").split()})

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.log) if event["kind"] == kind]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


PROGRAM = """
import json, sys
from pathlib import Path
from tidemill.core.errors import TidemillError
from tidemill.core.events import Events
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package
from tidemill.core.project import build
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.slot import resolved
from tidemill.serve.server import serve

said = json.loads(sys.argv[1])
ledger = Ledger(said["ledger"]) if said["ledger"] else None

def tell(event):
    line = json.dumps({"kind": event.kind, "message": event.message, "level": event.level, **event.fields}, default=str)
    sys.stdout.write(line + "\\n")  # in one piece: two threads may tell at once
    sys.stdout.flush()

try:
    targets = [Package.open(ref) if ref.startswith("/") else resolved(ref, ledger, follow=said["follow"]) for ref in said["refs"]]
    config = build(ServeConfig, {"port": 0, **said["config"]}, path="serve")
    serve(targets, config=config, ledger=ledger, follow=said["follow"], events=Events(tell))
except TidemillError as error:
    print(json.dumps({"kind": "failed", "message": str(error)}), flush=True)
    sys.exit(error.exit_code)
"""


@contextmanager
def served(*refs: str | Path, ledger: Path | None = None, follow: bool = True, **config: Any) -> Iterator[Served]:
    """A server in a process of its own, ended with all of its replicas."""
    said = {"refs": [str(ref) for ref in refs], "ledger": str(ledger) if ledger else None, "follow": follow, "config": config}
    command = [sys.executable, "-c", PROGRAM, json.dumps(said)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        made = Served(process, "", None)
        ready = threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                made.log.append(event)
                if event["kind"] == "serve.ready":
                    made.url, made.grpc = event["url"], event["grpc"]
                    ready.set()
            ready.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            assert ready.wait(PATIENCE_S)
            yield made
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()


class Callers:
    """Threads that ask `/predict` again and again over connections that they keep, and open anew when one is gone.

    Attributes:
        answered: For each answer: when it was asked for, its version.
        failures: For each request that got no answer, or one that is not 200: when it was asked for, how long after it failed, and why.
    """

    def __init__(self, url: str, *, threads: int = 4, path: str = "/predict", body: Any = EXAMPLE) -> None:
        self.answered: list[tuple[float, str]] = []
        self.failures: list[tuple[float, float, str]] = []
        self._address = url.removeprefix("http://")
        self._path, self._body = path, json.dumps(body)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def versions(self) -> set[str]:
        return {version for _, version in list(self.answered)}

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stopping.is_set():
            asked = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
                connection.request("POST", self._path, self._body)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status == 200:
                    self.answered.append((asked, json.loads(content)["version"]))
                else:
                    self.failures.append((asked, time.monotonic() - asked, f"{answer.status} {content[:200]!r}"))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((asked, time.monotonic() - asked, repr(error)))
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()


def until(condition: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` gives when it first gives something."""
    end = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return found


def pss_kb(pid: int) -> int:
    """Memory of a process, shared pages by share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

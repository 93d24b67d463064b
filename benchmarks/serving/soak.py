"""A long while of mixed load with version changes: nothing fails, memory stays flat.

    python benchmarks/serving/soak.py                               # half an hour, 50 changes
    python benchmarks/serving/soak.py --minutes 2 --changes 10      # a look
    python benchmarks/serving/soak.py --replicas 2 --kills 10       # and replicas that are killed meanwhile

A server follows a ledger, as `tidemill serve NAME` does, with metrics and the prediction log on. Callers send JSON records, batches, the
inference protocol as JSON, as raw tensors and over gRPC, Arrow, and bodies that are wrong; each of these must be answered as it deserves:
200, or a refusal below 500. Meanwhile the alias moves from version to version, and once to one that breaks its contract. Memory is the
proportional set size of all processes; its slope is taken by least squares over the last two thirds.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import gzip
import http.client
import json
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pyarrow as pa

from tidemill.core.ledger import Ledger
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.testing.packages import EXAMPLE, tiny_package

HERE = Path(__file__).parent
RECORDS = [EXAMPLE, {**EXAMPLE, "carrier": "DL", "distance": 10.0}, {**EXAMPLE, "carrier": "航空", "weekend": False}]
TENSORS: dict[str, tuple[str, list[Any]]] = {
    "distance": ("FP64", [1400.0, 10.0, 1400.0]),
    "fare": ("FP32", [12.5] * 3),
    "seats": ("INT64", [3] * 3),
    "carrier": ("BYTES", ["UA", "DL", "航空"]),
    "weekend": ("BOOL", [True, True, False]),
    "departs": ("INT64", [1_370_115_000_000_000] * 3),
}
ARROW = "application/vnd.apache.arrow.stream"
BAD: list[tuple[str, bytes, dict[str, str]]] = [
    ("/predict", b"{", {}),
    ("/predict", b"[]", {}),
    ("/predict", json.dumps({**EXAMPLE, "distance": "far"}).encode(), {}),
    ("/predict_batch", b'{"records": []}', {}),
    ("/predict_batch", b"no arrow", {"content-type": ARROW}),
    ("/v2/models/tiny/infer", b'{"inputs": [{"name": "x", "shape": [-1], "datatype": "FP99", "data": []}]}', {}),
    ("/v2/models/none/infer", b"{}", {}),
    ("/predict", b"\x1f\x8b" + b"\0" * 50, {"content-encoding": "gzip"}),
    ("/nowhere", b"", {}),
]


class Callers:
    """Threads of each kind; what they were answered, by kind."""

    def __init__(self, url: str, grpc_at: str) -> None:
        self.answers: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: list[dict[str, Any]] = []
        self.versions: collections.Counter[str] = collections.Counter()
        self.stopping = threading.Event()
        self._address, self._grpc = url.removeprefix("http://"), grpc_at
        kinds = {"record": 3, "batch": 1, "protocol": 2, "raw": 2, "arrow": 1, "wrong": 2, "grpc": 2}
        self.threads = [threading.Thread(target=self._run, args=(kind, i)) for kind, many in kinds.items() for i in range(many)]

    def _run(self, kind: str, seed: int) -> None:
        rng = random.Random(f"{kind}{seed}")
        ask = self._over_grpc() if kind == "grpc" else self._over_http(kind, rng)
        while not self.stopping.is_set():
            began = time.time()
            try:
                status, version = ask()
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                status, version = f"{type(error).__name__}: {str(error)[:200]}", ""
            self.answers[kind, status] += 1
            good = status.isdigit() and 400 <= int(status) < 500 if kind == "wrong" else status == "200"
            if not good:
                self.failures.append({"at": began, "after_s": round(time.time() - began, 3), "kind": kind, "status": status})
            if version:
                self.versions[version] += 1
            time.sleep(rng.random() * 0.01)

    def _over_http(self, kind: str, rng: random.Random) -> Callable[[], tuple[str, str]]:
        kept: list[http.client.HTTPConnection] = []
        bodies = {"record": record(), "batch": batch(), "protocol": protocol(), "raw": raw(), "arrow": arrow()}

        def ask() -> tuple[str, str]:
            path, body, headers = rng.choice(BAD) if kind == "wrong" else bodies[kind]
            if not kept:
                kept.append(http.client.HTTPConnection(self._address, timeout=30))
            used = kept[0].sock is not None
            try:
                answer, content = asked(kept[0], path, body, headers)
            except (OSError, http.client.HTTPException):
                kept.pop().close()
                if kind != "wrong" or not used:
                    raise
                # What is refused by its head alone is not read, and its connection may be closed.
                kept.append(http.client.HTTPConnection(self._address, timeout=30))
                answer, content = asked(kept[0], path, body, headers)
            if answer.getheader("content-encoding") == "gzip":
                content = gzip.decompress(content)
            told = json.loads(content) if kind in ("record", "batch", "protocol") and answer.status == 200 else {}
            return str(answer.status), told.get("version") or told.get("model_version") or ""

        return ask

    def _over_grpc(self) -> Callable[[], tuple[str, str]]:
        made = messages()
        request, response = (made[name] for name in METHODS["ModelInfer"])
        call = grpc.insecure_channel(self._grpc).unary_unary(
            f"/{PACKAGE}.{SERVICE}/ModelInfer", request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        inputs = [{"name": name, "datatype": kind, "shape": [3, 1]} for name, (kind, _) in TENSORS.items()]
        message = request(model_name="tiny", inputs=inputs, raw_input_contents=[packed(*tensor) for tensor in TENSORS.values()])
        return lambda: ("200", call(message, timeout=30).model_version)


def asked(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def record() -> tuple[str, bytes, dict[str, str]]:
    return "/predict", json.dumps(EXAMPLE).encode(), {}


def batch() -> tuple[str, bytes, dict[str, str]]:
    return "/predict_batch", json.dumps({"records": RECORDS * 20}).encode(), {"accept-encoding": "gzip"}


def protocol() -> tuple[str, bytes, dict[str, str]]:
    inputs = [{"name": name, "datatype": kind, "shape": [3, 1], "data": values} for name, (kind, values) in TENSORS.items()]
    return "/v2/models/tiny/infer", json.dumps({"inputs": inputs}).encode(), {}


def raw() -> tuple[str, bytes, dict[str, str]]:
    contents = {name: packed(*tensor) for name, tensor in TENSORS.items()}
    inputs = [
        {"name": name, "datatype": kind, "shape": [3, 1], "parameters": {"binary_data_size": len(contents[name])}}
        for name, (kind, _) in TENSORS.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return "/v2/models/tiny/infer", head + b"".join(contents.values()), {"inference-header-content-length": str(len(head))}


def arrow() -> tuple[str, bytes, dict[str, str]]:
    columns = {name: [each[name] for each in RECORDS] for name in EXAMPLE if name != "departs"}
    departs = pa.array([1_370_115_000_000_000] * 3, pa.timestamp("us", "UTC"))
    table = pa.table({**columns, "departs": departs, "fare": pa.array([12.5] * 3, pa.float32())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return "/predict_batch", sink.getvalue().to_pybytes(), {"content-type": ARROW}


def packed(kind: str, values: list[Any]) -> bytes:
    if kind == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return np.array(values, {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}[kind]).tobytes()


def processes(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in file.read_text(encoding="ascii").split()]
    return found


def memory_mb(pid: int) -> float:
    total = 0
    for each in processes(pid):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def soak(folder: Path, *, minutes: float, changes: int, replicas: int, kills: int) -> dict[str, Any]:
    ledger = Ledger(folder / "ledger.db")
    for i in range(changes + 1):
        ledger.register(tiny_package(folder / f"made-{i}", classes=[f"no{i}", f"yes{i}"]))
    promise = {"name": "latency p99_ms", "measure": "latency.p99_ms", "relation": "<=", "limit": 1e-9}
    broken = ledger.register(tiny_package(folder / "broken", classes=["no", "yes"], promises=[promise])).version
    command = [
        sys.executable, "-m", "tidemill.cli", "serve", "tiny", "--home", str(folder), "--port", "0", "--grpc-port", "0",
        "--replicas", str(replicas), "--log", str(folder / "log"),
    ]  # fmt: skip
    log = (folder / "server.log").open("w+", encoding="utf-8")
    server = subprocess.Popen(command, cwd=folder, stderr=log, stdout=log)
    try:
        url, grpc_at = addresses(server, folder / "server.log")
        while replicas > 1 and f"tidemill_replicas {replicas}\n" not in urlopen(f"{url}/metrics", timeout=30).read().decode():
            time.sleep(0.1)  # else all connections go to the first
        callers = Callers(url, grpc_at)
        for thread in callers.threads:
            thread.start()
        began = time.time()
        samples: list[tuple[float, float]] = []
        late: list[float] = []
        killed: list[float] = []
        moves = [began + minutes * 60 * (i + 0.5) / changes for i in range(changes)]
        deaths = [began + minutes * 60 * (i + 0.9) / kills for i in range(kills)]
        wanted = 1
        while time.time() < began + minutes * 60:
            if moves and time.time() >= moves[0]:
                if len(moves) == max(1, changes // 2):
                    ledger.promote("tiny", broken, why="to be refused")
                    time.sleep(6)
                moves.pop(0)
                wanted += 1
                ledger.promote("tiny", wanted, why="soak")
                late.append(took(url, str(wanted)))
            if deaths and time.time() >= deaths[0]:
                deaths.pop(0)
                victims = processes(server.pid)[1:]
                killed.append(time.time())
                os.kill(random.choice(victims), signal.SIGKILL)
            samples.append((time.time() - began, memory_mb(server.pid)))
            time.sleep(1.0)
        callers.stopping.set()
        for thread in callers.threads:
            thread.join(60)
        ready = json.loads(urlopen(f"{url}/health", timeout=30).read())
        shown = urlopen(f"{url}/metrics", timeout=30).read().decode().splitlines()
        restarts = sum(float(line.split()[1]) for line in shown if line.startswith("tidemill_replica_restarts_total "))
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        server.kill()
        log.close()
    steady = np.array([sample for sample in samples if sample[0] > minutes * 20])
    slope = float(np.polyfit(steady[:, 0] / 3600, steady[:, 1], 1)[0])
    far = [f for f in callers.failures if not any(0 <= f["at"] + f["after_s"] - death <= 1.0 for death in killed)]
    return {
        "minutes": minutes, "replicas": replicas, "changes": len(late), "refused_versions": 1, "kills": len(killed), "restarts": int(restarts),
        "requests": sum(callers.answers.values()),
        "answers": {f"{kind} {status}": many for (kind, status), many in sorted(callers.answers.items())},
        "versions_seen": len(callers.versions),
        "failures": len(far), "failures_within_1s_of_a_kill": len(callers.failures) - len(far), "first_failures": far[:10],
        "change_s": {"median": round(float(np.median(late)), 2), "max": round(max(late), 2)},
        "memory_mb": {"first_minute": round(float(np.median([m for t, m in samples if t < 60])), 1),
                      "last_minute": round(float(np.median([m for t, m in samples if t > minutes * 60 - 60])), 1),
                      "slope_per_hour": round(slope, 1), "highest": round(max(m for _, m in samples), 1)},
        "exit_code": code, "state": ready["deployment"],
    }  # fmt: skip


def addresses(server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Where the server answers, from its own sockets: the one that speaks HTTP, and the other."""
    end = time.time() + 60
    while time.time() < end and server.poll() is None:
        for port in listening(processes(server.pid)):
            with suppress(OSError, ValueError, http.client.HTTPException), urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if json.loads(answer.read())["status"] == "healthy":
                    others = [other for other in listening(processes(server.pid)) if other != port]
                    if others:
                        return f"http://127.0.0.1:{port}", f"127.0.0.1:{others[0]}"
        time.sleep(0.2)
    raise SystemExit(log.read_text(encoding="utf-8"))


def listening(pids: list[int]) -> list[int]:
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                inodes.add(str(file.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text(encoding="ascii").splitlines()[1:]]
    return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes})


def took(url: str, version: str) -> float:
    began = time.time()
    while json.loads(urlopen(f"{url}/health", timeout=30).read())["models"][0]["version"] != version:
        if time.time() - began > 30:
            raise SystemExit(f"version {version} does not answer")
        time.sleep(0.05)
    return time.time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0, help="replicas to kill; needs more than one")
    parser.add_argument("--out", type=Path, help="file for the result (default: results/ for a full run)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = soak(Path(folder), minutes=given.minutes, changes=given.changes, replicas=given.replicas, kills=given.kills)
    date = dt.datetime.now(dt.UTC).date().isoformat()
    done |= {"date": date, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"}
    print(json.dumps(done, indent=1))
    out = given.out or (HERE / "results" / f"{date}-soak-{given.replicas}.json" if given.minutes >= 30 else None)
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if done["failures"] == 0 and done["exit_code"] == 0 else 1)


if __name__ == "__main__":
    main()

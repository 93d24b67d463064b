"""The main job, start to end: data, training, packaging, a served answer. Every step is a command that you can type.

Arguments are passed on to `tidemill run`, such as `--set tune.trials=3`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from get_data import get_data

FOLDER = Path(__file__).parent
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"


def main() -> int:
    get_data()
    command = ["tidemill", "run", *sys.argv[1:]]
    say(shlex.join(command))
    if code := subprocess.run([TIDEMILL, *command[1:]], cwd=FOLDER, check=False).returncode:
        return code
    shown = subprocess.run([TIDEMILL, "models", "show", "flights", "--json"], cwd=FOLDER, check=True, capture_output=True, text=True)
    package = json.loads(shown.stdout)
    port = free_port()
    say(f"tidemill serve flights --port {port}")
    server = subprocess.Popen([TIDEMILL, "serve", "flights", "--port", str(port), "--quiet"], cwd=FOLDER)
    try:
        wait_until_ready(server, port)
        record = json.loads((Path(package["path"]) / "tidemill.json").read_text(encoding="utf-8"))["signature"]["example"]
        say(f"curl -s 127.0.0.1:{port}/predict -H 'Content-Type: application/json' -d '{json.dumps(record)}'")
        print(json.dumps(ask(port, "/predict", record)))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    quality = package["evidence"]["quality"]
    report = newest_report()
    print()
    print(
        f"quality   {quality['metric']} {quality['value']:.4f}, 95 % interval {quality['low']:.4f} to {quality['high']:.4f}, on {quality['rows']} flights"
    )
    print(f"report    {report.as_uri()}")
    print("serve it  make serve")
    return server.returncode


def wait_until_ready(server: subprocess.Popen[bytes], port: int, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        try:
            ask(port, "/health/ready")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {seconds:g} s")


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def newest_report() -> Path:
    runs = sorted((FOLDER / ".tidemill" / "runs" / "flights").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    return runs[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(command: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}$ {command}{plain}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Which HTTP stack the server stands on, and where the model runs: requests/s and latency of each, under `wrk`.

Echo stacks do nothing but parse a body and answer a number; the `tidemill` ones answer `/predict` of a six-column package
on the event loop or on threads. Every stack runs in turn in each repeat, the order reversed every other time; ratios are
within a repeat, since machines drift. Needs wrk (on Debian: apt-get install wrk), and `pip install granian uvicorn` beside the lock.

Usage: python benchmarks/serving_stack/run.py [--repeats 5] [--seconds 3]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
STACKS = ("granian-rsgi", "granian-rsgi-asyncio", "granian-asgi", "uvicorn-asgi", "protocol", "tidemill-inline", "tidemill-threads")
ECHO = "granian-rsgi"
BODY = '{"distance": 1400.0, "fare": 12.5, "seats": 3, "carrier": "UA", "weekend": true, "departs": "2013-06-01T19:30:00Z"}'
CONNECTIONS = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("skipped: wrk is not installed (on Debian: apt-get install wrk)")
        return
    rounds = []
    for repeat in range(options.repeats):
        order = STACKS if repeat % 2 == 0 else STACKS[::-1]
        rounds.append({stack: measure(stack, options.seconds) for stack in order})
        print(f"repeat {repeat + 1}: " + ", ".join(f"{stack} {rounds[-1][stack]['64']['requests_s']:,.0f}/s" for stack in STACKS))
    report = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("granian", "uvicorn", "httptools", "uvloop", "msgspec", "onnxruntime")},
        "seconds": options.seconds,
        "summary": {stack: summary(stack, rounds) for stack in STACKS},
        "rounds": rounds,
    }
    path = HERE / "results" / f"{report['at'][:10]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["summary"]))


def measure(stack: str, seconds: int) -> dict[str, dict[str, float]]:
    """By number of connections: requests/s, p50 and p99 in milliseconds."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(HERE / "stacks.py"), stack, str(port)], stderr=subprocess.DEVNULL)
    path = "/predict" if stack.startswith("tidemill") else "/"
    try:
        wait_for(f"http://127.0.0.1:{port}{path}")
        load(port, path, 64, 1)
        return {str(connections): counted(process.pid, port, path, connections, seconds) for connections in CONNECTIONS}
    finally:
        process.terminate()
        process.wait()


def counted(pid: int, port: int, path: str, connections: int, seconds: int) -> dict[str, float]:
    """The load's figures, and the CPU time of the server for one request, which other programs on the machine change least."""
    before = cpu_seconds(pid)
    found = load(port, path, connections, seconds)
    return {**found, "cpu_us": (cpu_seconds(pid) - before) / (found["requests_s"] * seconds) * 1e6}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, path: str, connections: int, seconds: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'; wrk.headers['Content-Type'] = 'application/json'; wrk.body = '{BODY}'\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, f"http://127.0.0.1:{port}{path}"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in told, told
    assert "Socket errors" not in told, told
    found = {quantile: re.search(rf"{quantile}%\s+([\d.]+)(us|ms|s)", told) for quantile in (50, 99)}
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert rate is not None
    assert all(found.values())
    return {"requests_s": float(rate[1])} | {f"p{q}_ms": float(m[1]) * units[m[2]] for q, m in found.items() if m}


def summary(stack: str, rounds: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, float]:
    """Medians over the repeats; ratios to the bare Granian RSGI echo of the same repeat."""
    made = {"ratio_64": statistics.median(r[stack]["64"]["requests_s"] / r[ECHO]["64"]["requests_s"] for r in rounds)}
    for connections in map(str, CONNECTIONS):
        for key in ("requests_s", "p50_ms", "p99_ms", "cpu_us"):
            made[f"{key}_{connections}"] = statistics.median(r[stack][connections][key] for r in rounds)
    return {key: round(value, 4) for key, value in made.items()}


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["stack                  ratio  64: requests/s   p50 ms   p99 ms  CPU us   1: requests/s   p50 ms   p99 ms"]
    for stack, row in found.items():
        lines.append(
            f"{stack:22} {row['ratio_64']:5.2f}  {row['requests_s_64']:14,.0f} {row['p50_ms_64']:8.2f} {row['p99_ms_64']:8.2f} {row['cpu_us_64']:7.1f}"
            f"  {row['requests_s_1']:14,.0f} {row['p50_ms_1']:8.3f} {row['p99_ms_1']:8.3f}"
        )
    return "\n".join(lines)


def wait_for(url: str) -> None:
    request = urllib.request.Request(url, BODY.encode(), {"content-type": "application/json"})
    for _ in range(300):
        try:
            with urllib.request.urlopen(request, timeout=1) as answer:
                answer.read()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hardware() -> dict[str, object]:
    from tidemill.core.contract import hardware as here

    return {**here(), "load_before": os.getloadavg()[0]}


if __name__ == "__main__":
    main()

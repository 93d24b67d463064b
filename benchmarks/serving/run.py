"""Claim: `tidemill serve` answers more requests a second, and sooner, than seven servers that users could take instead, with the same answers.

Three workloads: 39 ready numbers and 200 trees; the raw row of 13 numbers and 26 texts through the same graph for all; sentences through
MiniLM. Each server is started anew in each repeat, the order turned round every other time; its answers are held against the right
ones before and under load; then it is loaded at 64, 1 and 16 connections by wrk, and from the second repeat on by requests on a
schedule of random times at four fifths of what it reached, where ours is asked for as much as each peer was. Ratios are
within a repeat, since machines drift. Windows in which other programs took a processor's 0.15 or more are taken again.

The peers are installed by this script, at the versions of `peers/requirements/`, into `.cache/benchmarks/serving` (5 GB). Needs Linux, wrk
and Java 17 (on Debian: apt-get install wrk openjdk-17-jre-headless).

Usage: run.py [--quick] [--only tabular-numbers|tabular-row|text|growth|start] [--repeats 3] [--servers tidemill,fastapi-2]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import figures
from environments import CACHE, environment, versions
from load import closed, kept_busy, opened
from machine import QUIET, busy_s, children_s, speed, used_s, wait_until_idle, wait_until_quiet
from servers import CONTROLS, OTHERS, OURS, SERVERS, Running, Server
from workloads import WORKLOADS, Workload

from tidemill.core.contract import hardware

HERE = Path(__file__).parent
PARTS = (*WORKLOADS, "growth", "start")
CONNECTIONS = (1, 16, 64)
GROWTH = (1, 4, 16, 64, 256, 1024)
# Seconds that a window of growth takes; beyond 64 connections more, since opening them takes a part of it, and a text waits for up to 4 s then:
# batches are made of what is of like length, so that a window within one wait would count the shorter or the longer ones.
GROWN_S = 4.0
MANY_S = 12.0
GROWN = ("tidemill", "tidemill-2", "fastapi-2")
# Share of its own closed-loop throughput that a peer is offered on a schedule.
OFFERED = 0.8
# Ours is asked at the nearest rate above a peer's that it was asked at anyway, where that is at most this many times the peer's.
NEAR = 1.5
# Seconds that windows may be taken again in all, where other programs disturbed.
AGAIN_S = 300.0
OUR_LIBRARIES = ("tidemill", "httptools", "uvloop", "msgspec", "onnxruntime", "openvino", "tokenizers", "numpy", "xgboost-cpu")

Window = dict[str, Any]


class Session:
    """One run of the script: what it measured, kept in a file after each server."""

    def __init__(self, parts: Iterable[str], path: Path, *, repeats: int, quick: bool, chosen: list[str] | None) -> None:
        self.parts = list(parts)
        self.path = path
        self.repeats = repeats
        self.quick = quick
        self.chosen = chosen
        self.again_s = AGAIN_S
        self.result = self._begun()

    def servers(self, workload: Workload) -> list[Server]:
        """What is compared on a workload, what was skipped before left out."""
        if workload.name == "text":
            names = [server.name for server in (*OURS, *OTHERS)]
        else:
            names = [server.name for server in (*OURS, *OTHERS) if server.name not in ("tidemill-bf16", "fastapi-1")]
        if workload.name == "tabular-numbers":
            names += [server.name for server in CONTROLS]
        if self.quick:
            names = [name for name in names if name in ("tidemill", "tidemill-bf16", "fastapi-1", "fastapi-2", "litserve")]
        return [SERVERS[name] for name in names if self._is_wanted(name)]

    def run(self) -> None:
        for part in self.parts:
            started = time.monotonic()
            if part in WORKLOADS:
                self.compare(WORKLOADS[part])
            elif part == "growth":
                self.growth()
            else:
                self.starts()
            self.result["seconds"][part] = round(time.monotonic() - started)
            self.keep()

    def compare(self, workload: Workload) -> None:
        for repeat in range(self.repeats):
            # Two looks at the controls do.
            order = [server for server in self.servers(workload) if repeat < 2 or server not in CONTROLS]
            rates = self._offered(workload)
            for server in order if repeat % 2 == 0 else order[::-1]:
                self._attempt(server, lambda server=server, repeat=repeat, rates=rates: self._measured(server, workload, repeat, rates))
            if workload.name == "text":
                said = subprocess.run([sys.executable, str(HERE / "limits.py")], check=True, capture_output=True, text=True).stdout
                self.result["limits"].append({"part": "text", "repeat": repeat, **json.loads(said)})
                print(f"  in process: {said.strip()}", flush=True)

    def growth(self) -> None:
        """One and two replicas from 1 to 1,024 connections, and the plainest of the others, which shows what the machine itself takes."""
        for repeat in range(2):
            for name in GROWN if repeat % 2 == 0 else GROWN[::-1]:
                for workload in (WORKLOADS["tabular-numbers"], WORKLOADS["text"]):
                    if self._is_wanted(name):
                        self._attempt(SERVERS[name], lambda n=name, w=workload, r=repeat: self._grown(SERVERS[n], w, r))

    def starts(self) -> None:
        """From the launch of the process to the first right answer, files in the page cache."""
        for repeat in range(3):
            for workload in WORKLOADS.values():
                for name in ("tidemill", "tidemill-2", "fastapi-2", *(("tidemill-bf16",) if workload.name == "text" else ())):
                    if self._is_wanted(name):
                        self._attempt(SERVERS[name], lambda n=name, w=workload, r=repeat: self._started(SERVERS[n], w, r))

    def _is_wanted(self, name: str) -> bool:
        return name not in self.result["skipped"] and (not self.chosen or name in self.chosen)

    def keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")

    def _attempt(self, server: Server, measure: Callable[[], None]) -> None:
        """Measure; a server that does not start, or answers wrongly, is left out from then on, and the results say why."""
        try:
            measure()
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            said = str(error.stderr or "").strip().rpartition("\n")[2] if isinstance(error, subprocess.CalledProcessError) else str(error)
            said = said.replace(f"{HERE.parents[1]}/", "")  # results name no folder of a machine
            self.result["skipped"][server.name] = said[-1500:]
            print(f"  {server.name} is left out: {said[-1500:]}", flush=True)
        self.keep()

    def _measured(self, server: Server, workload: Workload, repeat: int, rates: dict[str, float]) -> None:
        seconds = 3.0 if self.quick else 5.0
        with Running(server, workload) as running:
            self._add("starts", workload.name, server, repeat, {"seconds": round(running.start_s, 3)})
            difference = running.check(requests=64 if workload.name == "text" else 192, connections=16)
            row = {"difference": difference}
            if workload.name != "text" or repeat == 0:  # loops of our own warm up by themselves
                row["under_load"] = self._warmed(running, 1.0 if self.quick else server.warm_up_s)
            self._add("checks", workload.name, server, repeat, row)
            for connections in CONNECTIONS:
                if (connections == 16 and (repeat or self.quick)) or (connections != 64 and server in CONTROLS):
                    continue
                length = seconds if connections == 64 or workload.name == "text" else min(seconds, 3.0)
                self._closed(running, "closed", repeat, connections, length)
            for rate in self._rates_for(server, rates):
                length = (2.0 if self.quick else 5.0) if workload.name == "text" else min(seconds, 3.0)
                found = self._window(running, length, lambda rate=rate, length=length: self._opened(running, rate, length, repeat))
                self._add("windows", workload.name, server, repeat, {"kind": "open", "offered_s": round(rate, 1), **found})

    def _grown(self, server: Server, workload: Workload, repeat: int) -> None:
        """Once up and once down, since the machine drifts meanwhile."""
        with Running(server, workload) as running:
            running.check(requests=64, connections=16)
            self._warmed(running, 2.0)
            for connections in GROWTH if repeat % 2 == 0 else GROWTH[::-1]:
                self._closed(running, "growth", repeat, connections, GROWN_S if connections <= 64 else MANY_S)

    def _started(self, server: Server, workload: Workload, repeat: int) -> None:
        wait_until_quiet(3)
        with Running(server, workload) as running:
            self._add("starts", "start", server, repeat, {"workload": workload.name, "seconds": round(running.start_s, 3)})
            print(f"  {server.name} {workload.name}: {running.start_s:.2f} s to the first answer", flush=True)

    def _warmed(self, running: Running, seconds: float) -> float:
        """Answers while wrk loads the server at 64 connections: their largest difference from the right ones."""
        loading = threading.Thread(target=lambda: self._wrk(running, 64, seconds, 0.0))
        loading.start()
        try:
            return running.check(requests=16, connections=4)
        finally:
            loading.join()

    def _closed(self, running: Running, kind: str, repeat: int, connections: int, seconds: float) -> None:
        if running.workload.name == "text":
            found = self._window(running, seconds, lambda: self._kept_busy(running, connections, seconds, repeat))
        else:
            self._wrk(running, connections, 1, 0.5)
            found = self._window(running, seconds, lambda: self._wrk(running, connections, seconds, 0.1 + 0.3 * repeat))
        part = "growth" if kind == "growth" else running.workload.name
        row = {"kind": kind, "workload": running.workload.name, "connections": connections, **found}
        self._add("windows", part, running.server, repeat, row)

    def _wrk(self, running: Running, connections: int, seconds: float, offset: float) -> dict[str, float]:
        return closed(running.port, running.server.path, running.bodies, connections=connections, seconds=seconds, offset=offset)

    def _kept_busy(self, running: Running, connections: int, seconds: float, seed: int) -> dict[str, float]:
        return kept_busy(running.port, running.server.path, running.bodies, connections=connections, seconds=seconds, seed=seed)

    def _opened(self, running: Running, rate: float, seconds: float, seed: int) -> dict[str, float]:
        return opened(running.port, running.server.path, running.bodies, rate=rate, seconds=seconds, seed=seed)

    def _window(self, running: Running, seconds: float, measure: Callable[[], dict[str, float]]) -> Window:
        """What the load saw, with the server's memory and processors, the machine's speed and what others took; again where they disturbed."""
        found: Window = {}
        for attempt in range(3):
            # What the load before left under way would be charged to this window.
            wait_until_idle(running.pids(), limit_s=6)
            pss: list[float] = []
            looking = threading.Timer(0.7 * seconds, lambda pss=pss: pss.append(running.pss_mib()))
            before_speed, before, pids = speed(), busy_s(), used_s(running.pids())
            own, start = children_s(), time.monotonic()
            looking.start()
            found = measure()
            looking.join()
            took = time.monotonic() - start
            after = used_s(running.pids())
            server_s = sum(value - pids.get(pid, 0.0) for pid, value in after.items())
            load_s = children_s() - own
            others = (busy_s() - before - server_s - load_s) / took
            found = {key: round(value, 4) for key, value in found.items() if not math.isnan(value)} | {
                "pss_mib": round(pss[0], 1), "processes": len(after), "cpu": round(server_s / took, 2), "load_cpu": round(load_s / took, 2),
                "others_cpu": round(others, 2), "speed": round((before_speed + speed()) / 2, 2), "attempts": attempt + 1,
            }  # fmt: skip
            if others < QUIET or self.quick or self.again_s < took:
                break
            again = time.monotonic()
            wait_until_quiet(5)
            self.again_s -= took + time.monotonic() - again
        return found

    def _offered(self, workload: Workload) -> dict[str, float]:
        """By peer, the rate that it is offered: a share of what it reached so far at 64 connections."""
        reached: dict[str, list[float]] = {}
        for window in self.result["windows"]:
            if window["part"] == workload.name and window["kind"] == "closed" and window["connections"] == 64:
                reached.setdefault(window["server"], []).append(window["requests_s"])
        return {
            server.name: OFFERED * statistics.median(reached[server.name]) for server in OTHERS if max(reached.get(server.name, [0.0])) > 1
        }

    def _rates_for(self, server: Server, rates: dict[str, float]) -> list[float]:
        if server in OTHERS:
            return [rates[server.name]] if server.name in rates else []
        if server not in OURS:
            return []
        levels: list[float] = []
        for rate in sorted(rates.values(), reverse=True):
            if not levels or rate * NEAR < levels[-1]:
                levels.append(rate)
        return levels

    def _add(self, key: str, part: str, server: Server, repeat: int, row: dict[str, Any]) -> None:
        row = {"part": part, "server": server.name, "repeat": repeat, "workload": part, **row}
        self.result[key].append(row)
        if key == "windows":
            load = f"{row['connections']} connections" if "connections" in row else f"{row['offered_s']:,.0f}/s offered"
            print(
                f"  {repeat + 1} {server.name:18} {row['workload']:15} {load:20} {row['requests_s']:9,.1f}/s  p50 {row['p50_ms']:9.3f}  p99 {row['p99_ms']:9.3f} ms"
                f"  {row['pss_mib']:6.0f} MiB  cpu {row['cpu']:.2f}, others {row['others_cpu']:.2f}, speed {row['speed']:.1f}"
                + (f"  refused {row['refused']:g}, failed {row['failed']:g}, late {row['late']:g}" if row["refused"] or row["failed"] or row["late"] else ""),
                flush=True,
            )  # fmt: skip

    def _begun(self) -> dict[str, Any]:
        """An empty result, or that of the same day without what is measured again."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        result: dict[str, Any] = {"at": now, "windows": [], "starts": [], "checks": [], "limits": [], "seconds": {}}
        if self.path.exists() and not self.quick:
            older = json.loads(self.path.read_text(encoding="utf-8"))
            for key in ("windows", "starts", "checks", "limits"):
                result[key] = [row for row in older[key] if row["part"] not in self.parts]
            result["versions"] = older["versions"]
            result["seconds"] = {part: took for part, took in older["seconds"].items() if part not in self.parts}
        result["skipped"] = {}
        result["hardware"] = {**hardware(), "load_before": os.getloadavg()[0]}
        result["versions"] = {**result.get("versions", {}), "tidemill": {"python": platform.python_version(), **own_versions()}}
        result["settings"] = {server.name: server.settings for server in SERVERS.values()}
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="ours, FastAPI and LitServe, short windows: a look, in five minutes")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; repeatable")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--servers", help="these alone, by name, with commas; nothing is entered into README.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped too
    if shutil.which("wrk") is None or shutil.which("java") is None:
        print("skipped: wrk and java must be there (on Debian: apt-get install wrk openjdk-17-jre-headless)")
        return
    partial = given.quick or given.servers
    path = CACHE / "partial.json" if partial else HERE / "results" / f"{dt.datetime.now(dt.UTC).date()}.json"
    if partial:
        path.unlink(missing_ok=True)
    parts = given.only or (list(WORKLOADS) if given.quick else list(PARTS))
    session = Session(
        parts, path, repeats=given.repeats or (2 if given.quick else 3), quick=given.quick, chosen=given.servers.split(",") if given.servers else None
    )  # fmt: skip
    used = {server.environment for workload in WORKLOADS.values() for server in session.servers(workload) if server.environment}
    for name in sorted(used):
        environment(name)
        session.result["versions"][name] = versions(name)
    for workload in WORKLOADS.values():
        workload.make()
    session.run()
    print(figures.text(session.result))
    if not partial:
        figures.enter(session.result, path, HERE / "README.md")


def own_versions() -> dict[str, str]:
    found = {}
    for name in OUR_LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    main()

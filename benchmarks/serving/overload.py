"""Claim: asked three times what it can do, the server answers as much as it can, within the time that it promises, and refuses the rest at once.

Texts of 5 to 120 words. First a closed loop finds what the server can do; then requests come at random times at 1, 2 and 3 times that rate, each
timed from when it was due, at a server that was told how long an answer may take (`[serve.batch] deadline_ms`). Beside it the same load at a server
without a deadline, which shows what a queue without admission does. Every server runs in turn in each repeat.

Usage: python benchmarks/serving/overload.py [--repeats 3] [--seconds 10] [--deadline-ms 500]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
from pathlib import Path
from typing import Any

from load import kept_busy, opened
from machine import speed
from servers import Running, ours
from workloads import WORKLOADS

from tidemill.core.contract import hardware

RESULTS = Path(__file__).parent / "results" / "overload"
TIMES = (1, 2, 3)
CONNECTIONS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    options = parser.parse_args()
    servers = {
        "deadline": ours("deadline", "admission by deadline", f"batch.deadline_ms={options.deadline_ms:g}", tolerance=5e-3),
        "none": ours("none", "defaults, no deadline", tolerance=5e-3),
    }
    workload = WORKLOADS["text"]
    workload.make()
    rounds: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        rounds.append({})
        # Both are asked by what the server can do where nothing is refused.
        with Running(servers["none"], workload) as running:
            can = busy(running, CONNECTIONS, options.seconds / 2, repeat)["requests_s"]
        for name in servers if repeat % 2 == 0 else reversed(servers):
            with Running(servers[name], workload) as running:
                busy(running, 8, 2.0, repeat)  # its first answers teach it how quick it is
                given = running.port, running.server.path, running.bodies
                found: dict[str, Any] = {"speed": speed(), "can": can}
                for times in TIMES:
                    found[str(times)] = opened(*given, rate=times * can, seconds=options.seconds, seed=repeat + 10 * times)
                rounds[-1][name] = found
                print(name, json.dumps(found), flush=True)
    report = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "seconds": options.seconds,
        "deadline_ms": options.deadline_ms,
        "rounds": rounds,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{report['at'][:10]}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rounds, options.deadline_ms))


def busy(running: Running, connections: int, seconds: float, seed: int) -> dict[str, float]:
    return kept_busy(running.port, running.server.path, running.bodies, connections=connections, seconds=seconds, seed=seed)


def table(rounds: list[dict[str, Any]], deadline_ms: float) -> str:
    """Medians over the repeats."""
    lines = [
        f"deadline {deadline_ms:g} ms",
        "",
        "| server | asked | answered/s, to what it can do | p50 ms | p99 ms | refused | refusal p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("deadline", "none"):
        for times in TIMES:
            found = [one[name] for one in rounds]
            each = [one[str(times)] for one in found]
            share = statistics.median(e["requests_s"] / one["can"] for e, one in zip(each, found, strict=True))
            p50, p99, late = (statistics.median(e[key] for e in each) for key in ("p50_ms", "p99_ms", "refused_p99_ms"))
            refused = statistics.median(e["refused"] / max(1, e["answers"] + e["refused"] + e["failed"] + e["late"]) for e in each)
            lines.append(f"| {name} | {times} times | {share:.2f} | {p50:.0f} | {p99:.0f} | {refused:.0%} | {late:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

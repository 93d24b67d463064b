"""What the machine does beside the benchmark: its speed right now, and who else uses its processors. Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")
# Processors' worth of other programs up to which a window counts.
QUIET = 0.15


def speed() -> float:
    """Millions of turns a second of a plain loop, which says how fast this core is just now."""
    turns = 500_000
    start = time.perf_counter()
    total = 0
    for turn in range(turns):
        total += turn & 7
    return turns / (time.perf_counter() - start) / 1e6


def busy_s() -> float:
    """Processor seconds that anything on this machine has used."""
    values = [int(value) for value in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / TICKS_S


def children_s() -> float:
    """Processor seconds of this process and of those of its children that have ended: the load, not the servers."""
    return sum(os.times()[:4])


def wait_until_quiet(limit_s: float) -> None:
    """Return when others leave the machine alone for a second, at the latest after `limit_s`."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        before = busy_s()
        time.sleep(1)
        if busy_s() - before < QUIET:
            return


def wait_until_idle(pids: list[int], *, limit_s: float) -> None:
    """Return when processes use less than a third of a processor, at the latest after `limit_s`."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        before = used_s(pids)
        time.sleep(0.1)
        if sum(value - before.get(pid, 0.0) for pid, value in used_s(pids).items()) <= 0.03:
            return


def marked(mark: str) -> list[int]:
    """Processes that carry a variable in their environment: a server's, wherever they went."""
    found = []
    wanted = mark.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # ended meanwhile, or somebody else's
                continue
    return found


def pss_mib(pids: list[int]) -> float:
    """Memory of processes, a page that n of them share counted as a share of 1/n."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def used_s(pids: list[int]) -> dict[int, float]:
    """Processor seconds of each process so far."""
    found = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = (int(fields[11]) + int(fields[12])) / TICKS_S
    return found

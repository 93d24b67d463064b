"""What several processes counted, as one: plain data that travels between them.

A snapshot has, by a family's name, how its samples go together and the samples themselves: label values and numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Together = Literal["sum", "max", "min", "each"]
"""sum: of all. max, min: the largest, the smallest. each: one sample a process, with its number as one more label."""

Snapshot = dict[str, dict[str, Any]]


def merged(snapshots: Iterable[tuple[str, Snapshot]], *, only_sums: bool = False) -> Snapshot:
    """One snapshot of several, each with the number of its process.

    Args:
        only_sums: Leave out gauges: what a process that ended has counted stays, how it stood does not.
    """
    found: Snapshot = {}
    for replica, snapshot in snapshots:
        for name, family in snapshot.items():
            together = family["together"]
            if only_sums and (together != "sum" or family["gauge"]):
                continue
            into = found.setdefault(name, {"together": together, "gauge": family["gauge"], "samples": []})
            known = {tuple(labels): numbers for labels, numbers in into["samples"]}
            for labels, numbers in family["samples"]:
                key = (*labels, replica) if together == "each" else tuple(labels)
                known[key] = _both(known[key], numbers, together) if key in known else list(numbers)
            into["samples"] = [[list(labels), numbers] for labels, numbers in known.items()]
    return found


def _both(one: list[float], other: list[float], together: str) -> list[float]:
    join = {"max": max, "min": min}.get(together)
    return [join(a, b) if join is not None else a + b for a, b in zip(one, other, strict=True)]

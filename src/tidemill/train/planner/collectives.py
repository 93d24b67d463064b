"""What it takes to talk: latency and bandwidth of each collective, from the data sheet or as measured here.

A collective of n ranks on B bytes takes alpha x steps + B x volume / bandwidth (Hockney's model; steps and volumes of ring algorithms, Thakur
et al. 2005). Bytes are those of the whole tensor: what every rank holds after an all-gather and before a reduce-scatter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, NotFound

NAMES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
FORMAT = "tidemill.collectives/1"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Latency of one step in seconds, and bytes a second and direction."""

    alpha_s: float
    bandwidth: float


def steps(name: str, ranks: int) -> int:
    """Messages one after the other."""
    if ranks < 2:
        return 0
    return {"all_reduce": 2 * (ranks - 1), "broadcast": (ranks - 1).bit_length(), "send_recv": 1}.get(name, ranks - 1)


def volume(name: str, ranks: int) -> float:
    """Bytes that pass a rank's line for each byte of the tensor."""
    if ranks < 2:
        return 0.0
    share = (ranks - 1) / ranks
    return {"all_reduce": 2 * share, "broadcast": 1.0, "send_recv": 1.0}.get(name, share)


def seconds(name: str, num_bytes: float, ranks: int, line: Line) -> float:
    """Time of one collective.

    Raises:
        NotFound: If no collective has that name.
    """
    if name not in NAMES:
        raise NotFound("collective", name, NAMES)
    return line.alpha_s * steps(name, ranks) + num_bytes * volume(name, ranks) / line.bandwidth


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `tidemill doctor --collectives` found: a line for each collective."""

    ranks: int
    backend: str
    lines: Mapping[str, Line]

    def to_json(self) -> dict[str, Any]:
        lines = {name: {"alpha_s": line.alpha_s, "bandwidth": line.bandwidth} for name, line in self.lines.items()}
        return {"format": FORMAT, "ranks": self.ranks, "backend": self.backend, "lines": lines}


def read(path: Path) -> Measured:
    """The lines that a file of `tidemill doctor --collectives` holds.

    Raises:
        ConfigError: If it is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"--collectives: must be a file, got {path}", hint="tidemill doctor --collectives --output FILE writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ConfigError(f"{path}: format must be {FORMAT}, got {found['format']}")
        lines = {name: Line(alpha_s=float(one["alpha_s"]), bandwidth=float(one["bandwidth"])) for name, one in found["lines"].items()}
        measured = Measured(ranks=int(found["ranks"]), backend=str(found["backend"]), lines=lines)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: must hold what tidemill doctor --collectives writes: {error}") from error
    for name in NAMES:
        if name not in lines:
            raise ConfigError(f"{path}: must hold a line for {name}", hint="measure again")
        if not (lines[name].bandwidth > 0 and lines[name].alpha_s >= 0):
            raise ConfigError(f"{path}: bandwidth of {name} must be above 0 and its latency not below, got {lines[name]}")
    return measured

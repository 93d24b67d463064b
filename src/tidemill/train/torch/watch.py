"""`[train] fault`: what happens when ranks fail, hang, or the loss goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What happens when ranks fail, hang, or the loss goes wrong."""

    restarts: int = field(default=3, metadata={"min": 0, "max": 1000})
    """How often all ranks start again from the last checkpoint after one failed or hung."""
    hang_s: float = field(default=30.0, metadata={"min": 1.0, "max": 86_400.0})
    """Seconds without progress after which a rank counts as hung and is named; more than the longest micro-batch takes."""
    nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient norm that is no number: stop the run, or leave the step out and go on; its rows are named either way."""
    spike: float = field(default=0.0, metadata={"min": 0.0, "max": 1e9})
    """A loss of so many times the median of recent ones counts as a spike, handled as `nan` says; 0 looks for none."""

"""`[train] checkpoint`: how often a run is saved, and how many of its states stay."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its states stay."""

    every_steps: int = field(default=0, metadata={"min": 0, "max": 1_000_000_000})
    """Save after so many steps; 0 goes by `every_s` alone."""
    every_s: float = field(default=300.0, metadata={"min": 0.0, "max": 86_400.0})
    """Save after so many seconds; 0 goes by `every_steps` alone."""
    keep: int = field(default=2, metadata={"min": 1, "max": 1000})
    """How many of the newest stay."""
    asynchronous: bool = True
    """Write in the background while training goes on; a step waits only for a copy in memory."""

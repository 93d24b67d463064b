"""`[serve.replicas]`: how many processes answer, fixed or by load."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from tidemill.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """Bounds of a number that follows the load, and when it moves."""

    min: int = field(default=1, metadata={"min": 1, "max": 256})
    """Fewest processes."""
    max: int | None = field(default=None, metadata={"min": 1, "max": 256})
    """Most processes; one per core when absent."""
    cpu: float = field(default=0.75, metadata={"min": 0.05, "max": 64.0})
    """Cores that one process uses on the mean, above which another is started."""
    in_flight: float = field(default=16.0, metadata={"min": 1.0, "max": 100_000.0})
    """Requests in flight in one process on the mean, above which another is started."""
    up_s: float = field(default=3.0, metadata={"min": 0.5, "max": 3600.0})
    """Time that the load must stay above one of the two before another is started, in seconds."""
    down_s: float = field(default=60.0, metadata={"min": 1.0, "max": 86_400.0})
    """Time that one fewer would have to be enough, at seven tenths of both, before one is ended, in seconds."""

    @property
    def most(self) -> int:
        return self.max if self.max is not None else max(self.min, os.cpu_count() or 1)

    def check(self) -> None:
        if self.max is not None and self.max < self.min:
            raise ConfigError(f"serve.replicas.max: must be at least min, got {self.max} below {self.min}")


def cores_each(replicas: int | Literal["auto"] | ReplicasConfig) -> int:
    """Cores that each of the processes that always answer may count on: an even share."""
    return max(1, (os.cpu_count() or 1) // bounds(replicas).min)


def bounds(replicas: int | Literal["auto"] | ReplicasConfig) -> ReplicasConfig:
    """The setting as bounds; a fixed number has both the same."""
    if isinstance(replicas, ReplicasConfig):
        return replicas
    return ReplicasConfig() if replicas == "auto" else ReplicasConfig(min=replicas, max=replicas)

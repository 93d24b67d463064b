"""`[monitor]`: when a difference between live rows and the training data counts as drift."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tidemill.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Thresholds of the population stability index, which is in nats; 0.1 and 0.25 are the customary ones."""

    moderate: float = field(default=0.1, metadata={"min": 0.0})
    """From here on a column has moved."""
    severe: float = field(default=0.25, metadata={"min": 0.0})
    """From here on it is another distribution."""

    unbuilt: ClassVar[dict[str, str]] = {
        "drift": "set moderate and severe",
        "labels": "tidemill monitor report --labels FILE",
        "alerts": "tidemill monitor report --json, in the scheduler at hand",
    }

    def check(self) -> None:
        if self.severe < self.moderate:
            raise ConfigError(f"monitor.severe: must be at least monitor.moderate, got {self.severe} < {self.moderate}")

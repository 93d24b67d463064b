"""`[rollout]`: how versions replace each other, and who else is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class MLflowConfig:
    """`mlflow = { tracking_uri = "sqlite:///mlflow.db", experiment = "flights" }`."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """Where MLflow keeps its runs; a relative SQLite path is taken from the project's folder."""
    experiment: str | None = None
    """Name of the experiment; the project's name when absent."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Mirrors of runs and versions. Promotion itself is `tidemill models promote`."""

    mirrors: tuple[str, ...] = ()
    """Mirrors to publish each run to: mlflow, or `module:attribute`."""
    mlflow: MLflowConfig = field(default_factory=MLflowConfig)
    """The MLflow mirror's settings."""

    unbuilt: ClassVar[dict[str, str]] = {
        "steps": "tidemill models promote moves all traffic at once",
        "test": "contract.quality.max_drop tests a candidate before it is registered",
        "approval": "tidemill models promote is an explicit act",
        "triggers": "tidemill monitor report says when to run again",
    }

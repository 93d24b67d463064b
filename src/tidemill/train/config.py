"""`[train]`: how the model is fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

_NETWORKS = "linear and xgboost have no use for it"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How rows reach the model."""

    batch_rows: int = field(default=65_536, metadata={"min": 256, "max": 4_194_304})
    """Rows that go through the feature graph at once."""
    cache_share: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})
    """Share of `engine.memory` that computed features may stay in; beyond it they are computed again for each pass."""

    unbuilt: ClassVar[dict[str, str]] = {
        "parallel": _NETWORKS,
        "precision": _NETWORKS,
        "optimizer": _NETWORKS,
        "schedule": _NETWORKS,
        "epochs": "model.num_rounds says how long xgboost fits",
        "batch_size": "batch_rows says how many rows are computed at once",
        "checkpoint": "a stopped run resumes from its last finished stage, a stopped search from its last finished trial",
    }

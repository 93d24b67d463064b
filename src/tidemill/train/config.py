"""`[train]`: how the model is fitted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.errors import ConfigError
from tidemill.train.torch.config import NetworkConfig
from tidemill.train.torch.parallel.layout import ParallelConfig

# What another kind of model has in place of a network's key.
_INSTEAD = {
    "epochs": "model.num_rounds says how long xgboost fits",
    "batch_size": "train.batch_rows says how many rows are computed at once",
    "early_stopping": "model.early_stopping is xgboost's",
    "checkpoint": "a stopped run resumes from its last finished stage, a stopped search from its last finished trial",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(NetworkConfig):
    """How rows reach the model, and how a network is fitted; other kinds have no use for more than the first two keys."""

    batch_rows: int = field(default=65_536, metadata={"min": 256, "max": 4_194_304})
    """Rows that go through the feature graph at once."""
    cache_share: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})
    """Share of `engine.memory` that computed features may stay in; beyond it they are computed again for each pass."""

    def check_project(self, project: Any) -> None:
        """Raise ConfigError where a network's key stands beside a kind of model that has no use for it."""
        kind = project.model.kind
        searched = "model.kind" in (getattr(project.tune, "space", None) or {})
        if ":" not in kind and not searched:
            self.check_use(kind, project.model.model())

    def check_use(self, kind: str, model: Any) -> None:
        """Raise ConfigError where a network's key is set and `model` is none."""
        if hasattr(model, "training"):
            return
        plain = NetworkConfig()
        workers = hasattr(model, "workers")
        for known in dataclasses.fields(NetworkConfig):
            if getattr(self, known.name) != getattr(plain, known.name):
                rows_alone = known.name == "parallel" and self.parallel == ParallelConfig(data=self.parallel.data)
                if workers and (known.name == "fault" or rows_alone):
                    continue
                hint = f"{kind} divides its rows alone: train.parallel.data" if workers else None
                raise ConfigError(f"train.{known.name}: is for networks, got model.kind {kind!r}", hint=_INSTEAD.get(known.name, hint))

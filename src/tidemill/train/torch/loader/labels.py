"""The target and the weight of raw rows as a network's loss takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.train.matrix import class_indices, finite_numbers, row_weights
from tidemill.train.torch.loader.raw import Raw, made_of
from tidemill.train.torch.loader.source import TARGET, WEIGHT

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which columns tell the target and the weight."""

    target: str
    classes: Sequence[Any] | None = None
    """The classes in order; the target is a number where None."""
    weight: str | None = None
    class_weight: Sequence[float] | None = None
    """What each class's rows count, times their weight."""

    @classmethod
    def of(cls, data: Artifact, *, class_weight: Sequence[float] | None = None) -> Self:
        """As the data stage wrote them."""
        facts = data.read_json("schema.json")
        return cls(target=facts["target"], classes=facts["classes"], weight=facts["weight"], class_weight=class_weight)

    @property
    def columns(self) -> list[str]:
        return [self.target] if self.weight is None else [self.target, self.weight]

    @property
    def weighted(self) -> bool:
        return self.weight is not None or self.class_weight is not None

    def read(self, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
        """`target`, int64 or float32 [N], and where rows have weights `weight`, float32 [N].

        Raises:
            DataError: If a target is null or not among the classes, or a weight is null, negative or not finite.
        """
        if self.classes:
            made = {TARGET: class_indices(rows[self.target], list(self.classes), name=self.target).astype(np.int64)}
        else:
            made = {TARGET: finite_numbers(rows, self.target).astype(np.float32)}
        if self.weighted:
            weight_N = row_weights(rows, self.weight) if self.weight is not None else np.ones(rows.num_rows)
            if self.class_weight is not None:
                weight_N = weight_N * np.asarray(self.class_weight)[made[TARGET]]
            made[WEIGHT] = weight_N.astype(np.float32)
        return made

    def weights(self, raw: Raw, block: int) -> np.ndarray:
        """The weight of each row of a block, float32 [N].

        Raises:
            DataError: As `read` does; names the row.
        """
        made = [labels[WEIGHT] for labels in made_of(raw, block, self.columns, None, self.read)]
        return np.concatenate(made) if made else np.empty(0, np.float32)

    def blank(self, count: int) -> dict[str, np.ndarray]:
        """Targets of rows that fill up."""
        made: dict[str, np.ndarray] = {TARGET: np.zeros(count, np.int64 if self.classes else np.float32)}
        return {**made, WEIGHT: np.zeros(count, np.float32)} if self.weighted else made

"""Frequency: a category as how often the training rows hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from tidemill.features.builder import FLOAT, Block, Builder
from tidemill.features.categories import Numbers, number_nodes, reference_numbers
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import Categories, Tally


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """The category's share of the training rows, or its count.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | how often null was seen, as if it were a category                  |
    | unseen or rare category    | 0                                                                  |
    | empty text, any Unicode    | categories like others, told apart by code point, not normalized   |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    measure: Literal["share", "count", "log_count"] = "share"
    """share of all rows, in 0..1 | count of rows | log_count, ln(1 + count)."""
    max_size: int = field(default=1_000_000, metadata={"min": 1})
    """Categories that are kept, the most frequent ones; the others are rare."""
    min_count: int = field(default=1, metadata={"min": 1})
    """Rows that a category must have in training, or it is rare."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return Categories(self._summary)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return Made({name: numbers(reference_numbers(values, self._numbers(fitted)))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        tensors = number_nodes(graph, block, [self._numbers(stats) for stats in fitted])
        return Block(kind="number", names=block.names, origins=block.origins, tensors=tensors, element=FLOAT)

    def _summary(self, seen: Tally) -> Fitted:
        kept = seen.ranked(size=self.max_size, min_count=self.min_count)
        counts = seen.counts
        rows = sum(counts.values()) + seen.nulls
        return {"categories": kept, "counts": [counts[category] for category in kept], "nulls": seen.nulls, "rows": rows}

    def _numbers(self, fitted: Fitted) -> Numbers:
        counts = np.asarray([*fitted["counts"], fitted["nulls"]], np.float64)
        if self.measure == "share":
            counts /= max(fitted["rows"], 1)
        elif self.measure == "log_count":
            counts = np.log1p(counts)
        # The graph looks float32 up: what follows computes with the same numbers.
        *of_categories, of_null = counts.astype(np.float32).astype(np.float64).tolist()
        return Numbers(fitted["categories"], of_categories, null=of_null, other=0.0)
